"""Writes a comparison into the card of the tuned model, in its folder or in its repository on the Hub."""

from __future__ import annotations

import re
from pathlib import Path

from uniedit_hf.evaluation.comparison import missing_replies, readable
from uniedit_hf.evaluation.comparison_report import markdown
from uniedit_hf.files import write_text
from uniedit_hf.hub import hub_file


SHIPPED = Path(__file__).resolve().parents[2] / "assets"
PICTURES = re.compile(r"^(\d+) items, seeds \[([\d, ]*)\]", re.MULTILINE)


def with_result(text: str, result: dict) -> str:
    """A card's text with the table, which replaces an earlier one of the same suite; unchanged if the earlier one
    covers more images.
    """
    begin, end = _marks(result)
    section = f"{begin}\n\n### Evaluation: {result['suite']}\n\n{markdown(result)}\n{end}"
    if begin not in text or end not in text:
        return f"{text.rstrip()}\n\n{section}\n".lstrip()
    if pictures_in(text, result) > result["items"] * len(result["seeds"]):
        return text
    return text[: text.index(begin)] + section + text[text.index(end) + len(end) :]


def pictures_in(text: str, result: dict) -> int:
    """The number of images that a card's table of this suite covers; 0 without a table."""
    begin, end = _marks(result)
    if begin not in text or end not in text:
        return 0
    found = PICTURES.search(text[text.index(begin) : text.index(end)])
    return int(found[1]) * len(found[2].split(",")) if found else 0


def _marks(result: dict) -> tuple[str, str]:
    """The comments around the table of a suite."""
    return f"<!-- uniedit evaluate: {result['suite']} begin -->", f"<!-- uniedit evaluate: {result['suite']} end -->"


def why_not_written(result: dict, model: str, asked: bool, limited: bool) -> str:
    """The reason why a model's card is not changed, or "".

    Args:
        asked: Whether the user asked for the table in the card.
        limited: Whether the run uses only the first items.
    """
    if missing_replies(result):
        return "the run is not complete"
    if not readable(result):
        return "no image has marks"
    if any(run.get("problem") for run in result["runs"].values()):
        return "the official script has no number for this run"
    if limited and not asked:
        return "the run uses only the first items (--write_card writes it)"
    if not asked and Path(model).is_dir() and Path(model).resolve().is_relative_to(SHIPPED):
        return "the model comes with this project (--write_card writes it)"
    return ""


def write_into_card(result: dict, folder: Path) -> Path | None:
    """Writes the table into the `README.md` of a model's folder, which is created if missing. Returns the file, or
    `None` if its table of the same suite covers more images and is kept.
    """
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    if pictures_in(text, result) > result["items"] * len(result["seeds"]):
        return None
    write_text(card, with_result(text, result))
    return card


def push_into_card(result: dict, name: str) -> str | None:
    """Writes the table into the card of a repository on the Hub, as a commit, and returns the commit's URL; `None` if
    the card's table of the same suite covers more images and is kept.

    Raises:
        OSError: If the Hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi

    card = hub_file(name, "README.md")
    before = card.read_text(encoding="utf-8") if card else ""
    if pictures_in(before, result) > result["items"] * len(result["seeds"]):
        return None
    text = with_result(before, result)
    commit = HfApi().upload_file(
        path_or_fileobj=text.encode(),
        path_in_repo="README.md",
        repo_id=name,
        commit_message=f"Evaluation: {result['suite']}",
    )
    return commit.commit_url
