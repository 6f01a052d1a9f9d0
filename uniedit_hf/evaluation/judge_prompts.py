"""The prompts for judges, in our own words, with the marks of each benchmark. Official texts can be given in a file
instead (`load`). Other texts give other numbers, so the text is stored with every reply.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from uniedit_hf.evaluation.items import local_file


WISE = """Judge a generated picture strictly.
Prompt: <prompt>
What the prompt means: <explanation>
Give three marks from 0 (wrong) through 1 (partly) to 2 (fully right): Consistency (does the picture show what the
prompt means), Realism (could it be so), Aesthetic Quality. Reply with these three lines only:
**Consistency**: N
**Realism**: N
**Aesthetic Quality**: N"""

IMGEDIT = """The first picture was edited into the second after this instruction: <edit_prompt>
Give three marks from 1 (bad) to 5 (perfect); the second and third must not be above the first. Reply with a line of
reasons, then these three lines:
Instruction: N
Quality: N
Preservation: N"""

GEDIT = {
    "sc": """The first picture was edited into the second after this instruction: <instruction>
Give two marks from 0 to 10: how far the edit does what the instruction says, and how far it leaves all else as it was.
Reply with JSON only: {"score": [N, N], "reasoning": "..."}""",
    "pq": """Look at this generated picture. Give two marks from 0 to 10: how natural it looks, and how free it is of
artifacts. Reply with JSON only: {"score": [N, N], "reasoning": "..."}""",
}

_AFTER = "The first picture was edited into the second after this instruction: <instruction>"
_FINAL = "Reply with a line of reasons, then: Final Score: N"
RISE = {
    "consistency": f"""{_AFTER}
From 1 to 5: how far does all that the instruction leaves alone stay the same?
{_FINAL}""",
    "reasoning": f"""A picture was edited after this instruction: <instruction>
The right result: <reference>
From 1 to 5: how far does the last picture show this result? Another picture, if there is one, is for comparison.
{_FINAL}""",
    "plausibility": f"""From 1 to 5: how realistic, sharp and free of artifacts is this picture?
{_FINAL}""",
    "logical": f"""The first picture is a puzzle, the last an answer drawn after this instruction: <instruction>
The right answer: <reference>
Give two marks of 0 or 1: does the last picture keep the puzzle's look, and is the answer right?
{_FINAL}, N""",
}

_MADE = "The last picture was made from what comes before it, after this instruction: <instruction>"
KRIS = {
    "consistency": f"""{_MADE}
From 1 to 5: how far does all that the instruction leaves alone stay the same?
Reply with JSON only: {{"consistency_score": N, "reasoning": "..."}}""",
    "instruction": f"""{_MADE}
<explanation>
From 1 to 5: how far does it do what the instruction says?
Reply with JSON only: {{"instruction_score": N, "reasoning": "..."}}""",
    "knowledge": f"""{_MADE}
<explanation>
Two marks from 1 to 5: how far does it do what the instruction says, and how far is it true to what is known? If the
first is 1 or 2, the second is 1.
Reply with JSON only: {{"instruction_score": N, "knowledge_score": N, "reasoning": "..."}}""",
    "quality": """From 1 to 5: how sharp, natural and free of artifacts is the last picture?
Reply with JSON only: {"quality_score": N, "reasoning": "..."}""",
}


def load(path: str | None) -> dict[str, str]:
    """Texts by name from a JSON file, which replace ours; names that are missing keep ours.

    Raises:
        ValueError: If the file is not a JSON object of texts.
    """
    if path is None:
        return {}
    try:
        texts = json.loads(local_file(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"The judge prompts {path} cannot be read: {error}") from error
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"{path} must be a JSON object of texts by name, such as {{'sc': '...'}}.")
    return texts


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with every `<name>` of `values` replaced."""
    return re.sub(r"<(\w+)>", lambda match: str(values.get(match[1], match[0])), text)
