"""A comparison in the card of the tuned model, in its folder or in its repository on the Hub."""

from __future__ import annotations

from pathlib import Path

from uniedit_hf.evaluation.comparison_report import markdown
from uniedit_hf.hub import hub_file


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


def push_into_card(result: dict, name: str) -> str:
    """Writes the table into the card of a repository on the Hub, as a commit, whose address it returns.

    Raises:
        OSError: The Hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi

    card = hub_file(name, "README.md")
    text = with_result(card.read_text(encoding="utf-8") if card else "", result)
    commit = HfApi().upload_file(
        path_or_fileobj=text.encode(),
        path_in_repo="README.md",
        repo_id=name,
        commit_message=f"Evaluation: {result['suite']}",
    )
    return commit.commit_url
