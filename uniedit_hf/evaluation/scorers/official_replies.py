"""Reads a judge's reply as the official scripts do, including their faults; used only with `compat`.

Returns `None` if a script cannot read the reply, raises a Python error, or guesses at random.
"""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import Any


def wise(reply: str) -> dict[str, int]:
    """Uni-Edit: the first digit after a name is its mark; of several, the last counts."""
    named = re.findall(r"(consistency|realism|aesthetic quality)\*{0,2}\s*[:：]?\s*(\d)", reply, re.IGNORECASE)
    return {name.lower(): int(digit) for name, digit in named}


# ---- ImgEdit


def imgedit_uniedit(reply: str) -> list[int] | None:
    """Uni-Edit: lines of exactly `words: digits`, so "4." and "**4**" are lost, however many are left."""
    parts = [line.strip().split(": ") for line in reply.splitlines()]
    digits = [part[1] for part in parts if len(part) == 2 and part[1].isdigit()]
    try:
        return [int(each) for each in digits] or None
    except ValueError:  # "²" is a digit that int() refuses
        return None


def imgedit_lmms(reply: str) -> list[float] | None:
    """lmms-eval: the last three numbers after a colon, else the last three at the end of a line."""
    found = re.findall(r":\s*(\d+)", reply)
    if len(found) < 3:
        ends = (re.search(r"(\d+)\s*$", line.strip()) for line in reply.strip().split("\n"))
        found = [end[1] for end in ends if end]
    return [float(each) for each in found[-3:]] if len(found) >= 3 else None


# ---- GEdit (VIEScore)

DELIMITER = "||V^=^V||"


def gedit(reply: str) -> float | None:
    """The lowest score of VIEScore's parser, of any size; it does not check the scale. The random number that it
    returns after a second reply is not reproduced.
    """
    text = _viescore_text(reply)
    if not text:
        return None
    text = text.strip().replace("\n", "")
    try:
        found = json.loads(text)
        scores = found["score"]
        scores = scores if isinstance(scores, list) else [scores]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        try:
            scores = json.loads(_repaired(text))["score"]
        except (ValueError, TypeError, KeyError, IndexError, RecursionError):
            return None
    try:
        lowest = min(scores)
        return float(lowest) if isinstance(lowest, int | float) and isfinite(lowest) else None
    except (TypeError, ValueError, OverflowError):
        return None


def _viescore_text(reply: str) -> str | None:
    """The part of a reply that VIEScore parses as JSON."""
    if reply.count(DELIMITER) == 2:
        return reply.split(DELIMITER)[1]
    start, end = reply.find("{"), reply.rfind("}") + 1
    if start >= 0 and end > 0:
        return reply[start:end]
    listed = reply[reply.find("[") : reply.rfind("]") + 1] if "[" in reply else reply[-1 : reply.rfind("]") + 1]
    if re.match(r"\[\d+, ?\d+\]$", listed):
        return f'{{"score": {listed}}}'
    try:
        return f'{{"score": {int(reply)}}}' if 0 <= int(reply) <= 10 else None
    except ValueError:
        return None


def _repaired(text: str) -> str:
    """VIEScore's repair of JSON: quotes around keys, brackets around numbers, quotes around all other values."""

    def value(match: re.Match) -> str:
        key, written, end = match[1], match[2].strip(), match[3]
        if re.match(r"-?\d+(\.\d+)?$", written):
            written = f"[{written}]"
        elif not re.match(r"(true|false|null)$", written, re.IGNORECASE):
            written = f'"{written}"'
        return f"{key}: {written}{end}"

    return re.sub(r'(".*?"):(.*?)(,|})', value, re.sub(r"(\w+):", r'"\1":', text))


# ---- RISE


def rise(reply: str) -> list[int] | None:
    """The numbers after the first "Final Score" that has any, without checking the scale."""
    for words in ("Final Score", "Final Scores"):
        for behind in re.findall(rf"{words}\*{{0,2}}:?\s*([\d*\s,]*)", reply, re.IGNORECASE):
            if digits := re.findall(r"\d+", behind):
                try:
                    return [int(each) for each in digits]
                except ValueError:  # thousands of digits
                    return None
    return None


# ---- KRIS-Bench

OUT_OF_FIVE = (r"([1-5])\s*/\s*5", r"([1-5])\s+out\s+of\s+5", r"\b([1-5])\b")


def kris(reply: str, name: str, knowledge: bool = False) -> int | None:
    """One mark: the first flat JSON object with its key, of any size; else a label; else the first fraction of five,
    or digit of 1 to 5, anywhere.

    Args:
        knowledge: Read as for the types that need knowledge, where a mark of `null` stops the reading.
    """
    key = f"{name}_score"
    if found := re.search(rf"\{{[^{{}}]*{re.escape(key)}[^{{}}]*\}}", reply):
        try:
            mark = json.loads(found[0]).get(key)
            if mark is not None or knowledge:
                return None if mark is None else int(mark)
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            pass
    for pattern in (rf"{name}[_\s]*score\s*[:：]?\s*([1-5])", *OUT_OF_FIVE):
        if found := re.search(pattern, reply, re.IGNORECASE):
            return int(found[1])
    return None


def kris_dual(reply: str) -> dict[str, int | None] | None:
    """Instruction and knowledge: the whole reply as JSON, else its first balanced block, else labels."""
    keys = ("instruction", "knowledge")
    found = _json_or_none(reply) if _is_json(reply) else _json_or_none(_first_block(reply))
    if found:
        try:
            marks = {key: found.get(f"{key}_score") for key in keys}
            return {key: None if mark is None else int(mark) for key, mark in marks.items()}
        except (ValueError, TypeError, AttributeError, OverflowError):
            return None
    labelled = {key: re.search(rf"{key}[_\s]*score\"?\s*:\s*([1-5])", reply, re.IGNORECASE) for key in keys}
    return {key: int(mark[1]) if mark else None for key, mark in labelled.items()}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _first_block(text: str) -> str:
    """The text from the first brace to its closing one, ignoring quotes; "" if it does not close."""
    start, depth = text.find("{"), 0
    for place in range(max(start, 0), len(text) if start >= 0 else 0):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start : place + 1]
    return ""
