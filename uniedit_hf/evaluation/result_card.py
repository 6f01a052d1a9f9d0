"""A comparison in the card of the tuned model, in its folder or in its repository on the Hub."""

from __future__ import annotations

from pathlib import Path

from uniedit_hf.evaluation.comparison_report import markdown
from uniedit_hf.hub import hub_error


def with_result(text: str, result: dict) -> str:
    """A card's text with the table, in place of the one of the same suite from before."""
    begin, end = (f"<!-- uniedit evaluate: {result['suite']} {word} -->" for word in ("begin", "end"))
    section = f"{begin}\n\n### Evaluation: {result['suite']}\n\n{markdown(result)}\n{end}"
    if begin in text and end in text:
        return text[: text.index(begin)] + section + text[text.index(end) + len(end) :]
    return f"{text.rstrip()}\n\n{section}\n".lstrip()


def write_into_card(result: dict, folder: Path) -> Path:
    """Writes the table into the `README.md` of a model's folder, which is made if there is none."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    card.write_text(with_result(text, result), encoding="utf-8")
    return card


def hub_card(name: str) -> str:
    """The text of the card of a repository on the Hub, empty if it has none.

    Raises:
        OSError: There is no such repository, or it cannot be seen.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, "README.md")).read_text(encoding="utf-8")
    except (LocalEntryNotFoundError, HTTPError, HFValidationError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return ""
        raise hub_error(name, "model", error) from error


def push_into_card(result: dict, name: str) -> str:
    """Writes the table into the card of a repository on the Hub, as a commit, whose address it returns.

    Raises:
        OSError: The Hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi

    text = with_result(hub_card(name), result)
    commit = HfApi().upload_file(
        path_or_fileobj=text.encode(),
        path_in_repo="README.md",
        repo_id=name,
        commit_message=f"Evaluation: {result['suite']}",
    )
    return commit.commit_url
