"""The official scripts' formulas, written down a second time from their description and with other means (pandas,
numpy), faults included. Tests hold `compat` against them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd


# ---- WISE in the Uni-Edit repository


def wise(rows: Sequence[Mapping], replies: Sequence[str]) -> dict[str, float]:
    """Category means and the mean of the six; raises where a file is left out, since the script then ends."""
    table = []
    for row, reply in zip(rows, replies):
        marks = {"consistency": 9.9, "realism": 9.9, "aesthetic quality": 9.9}
        pattern = r"\*{0,2}(Consistency|Realism|Aesthetic Quality)\*{0,2}\s*[:：]?\s*(\d)"
        for match in re.finditer(pattern, reply, flags=re.I):
            marks[match.group(1).lower()] = float(match.group(2))
        table.append(marks | {"id": row["prompt_id"], "sub": row["Subcategory"]})
    frame = pd.DataFrame(table)
    for low, high, least in ((1, 400, 400), (401, 700, 300), (701, 1000, 300)):
        part = frame[frame["id"].between(low, high)]
        if len(part) < least or (part[["consistency", "realism", "aesthetic quality"]] == 9.9).any(axis=None):
            raise ValueError("the script leaves the file out")
    frame["score"] = (7 * frame["consistency"] + 2 * frame["realism"] + frame["aesthetic quality"]) / 20
    time = frame["sub"].isin(["Longitudinal time", "Horizontal time"]) & frame["id"].between(401, 700)
    where = {
        "culture": frame["id"] <= 400, "time": time, "space": frame["id"].between(401, 700) & ~time,
        "biology": frame["id"].between(701, 800), "physics": frame["id"].between(801, 900),
        "chemistry": frame["id"] > 900,
    }  # fmt: skip
    means = {name: frame.loc[rows, "score"].mean() for name, rows in where.items()}
    legacy = np.dot(list(means.values()), (0.4, 0.167, 0.133, 0.1, 0.1, 0.1))
    return means | {"overall_mean": float(np.mean(list(means.values()))), "overall_legacy": float(legacy)}


# ---- ImgEdit


def imgedit_uniedit(kinds: Sequence[str], replies: Sequence[str]) -> dict[str, float]:
    scores: dict[int, float] = {}
    for index, reply in enumerate(replies):
        numbers = []
        for line in reply.splitlines():
            head, *tail = line.strip().split(": ")
            if len(tail) == 1 and tail[0].isdigit():
                numbers.append(int(tail[0]))
        if numbers:
            scores[index] = round(sum(numbers) / len(numbers), 2)
    named = {}
    for kind in kinds:
        of_kind = [score for index, score in scores.items() if kinds[index] == kind]
        if of_kind:
            named[kind] = round(sum(of_kind) / len(of_kind), 2)
    return named | {"overall": round(sum(scores.values()) / len(scores), 2)}


def imgedit_lmms(kinds: Sequence[str], replies: Sequence[str]) -> dict[str, float]:
    scores = []
    for reply in replies:
        numbers = [float(number) for number in re.findall(r":\s*(\d+)", reply)]
        if len(numbers) < 3:
            ends = [re.search(r"(\d+)\s*$", line.strip()) for line in reply.strip().split("\n")]
            numbers = [float(end.group(1)) for end in ends if end is not None]
        scores.append(sum(numbers[-3:]) / 3.0 if len(numbers) >= 3 else 0.0)
    frame = pd.DataFrame({"kind": kinds, "score": scores})
    return frame.groupby("kind")["score"].mean().to_dict() | {"overall": float(np.mean(scores))}


# ---- GEdit


def viescore(reply: str) -> list | None:
    """The list of scores that VIEScore's parser finds at its first try; `None` where it would ask again."""
    if reply.count("||V^=^V||") == 2:
        text = reply[reply.find("||V^=^V||") + 9 : reply.rfind("||V^=^V||")]
    elif "{" in reply and "}" in reply:
        text = reply[reply.find("{") : reply.rfind("}") + 1]
    else:
        text = reply[reply.find("[") : reply.rfind("]") + 1]
        if re.match(r"^\[\d+, ?\d+\]$", text):
            return json.loads(text)
        try:
            return [int(reply)] if 0 <= int(reply) <= 10 else None
        except ValueError:
            return None
    text = text.strip().replace("\n", "")
    try:
        score = json.loads(text)["score"]
        return score if isinstance(score, list) else [score]
    except (ValueError, KeyError, TypeError):
        return _mended(text)


def _mended(text: str) -> list | None:
    text = re.sub(r"(\w+):", r'"\1":', text)

    def mend(match):
        value = match.group(2).strip()
        if re.match(r"^-?\d+(\.\d+)?$", value):
            value = "[" + value + "]"
        elif value.lower() not in ("true", "false", "null"):
            value = '"' + value + '"'
        return match.group(1) + ": " + value + match.group(3)

    try:
        return json.loads(re.sub(r'(".*?"):(.*?)(,|})', mend, text))["score"]
    except (ValueError, KeyError, TypeError):
        return None


def _gedit_rows(rows: Sequence[Mapping], replies: Sequence[tuple[str, str]]) -> pd.DataFrame:
    table = []
    for row, pair in zip(rows, replies):
        lowest = []
        for scores in map(viescore, pair):
            try:
                lowest.append(min(scores) + 0.0)  # a text has no root
            except (TypeError, ValueError):
                lowest.append(None)
        both = None not in lowest
        table.append({"group": row["task_type"], "language": row["instruction_language"],
                      "shared": row["Intersection_exist"], "sc": lowest[0] if both else None,
                      "pq": lowest[1] if both else None})  # fmt: skip
    frame = pd.DataFrame(table).astype({"sc": float, "pq": float})
    frame["o"] = np.sqrt(frame["sc"] * frame["pq"])
    return frame


def gedit_uniedit(rows, replies, groups: Sequence[str], language: str = "en") -> dict[str, float]:
    """Means of group means; not a number where a group has no item. What cannot be read is asked again for ever, so it
    is not there."""
    frame = _gedit_rows(rows, replies).dropna()
    frame = frame[frame["language"] == language]
    means = {group: frame.loc[frame["group"] == group, ["sc", "pq", "o"]].mean() for group in groups}
    averages = [np.mean([means[group][part] for group in groups]) for part in ("sc", "pq", "o")]
    return dict(zip(("SC", "PQ", "overall"), map(float, averages)))


def gedit_lmms(rows, replies, language: str = "en") -> dict[str, float]:
    frame = _gedit_rows(rows, replies).fillna(0.0)
    frame = frame[frame["language"] == language]
    parts = {name: float(frame[part].mean()) for name, part in (("SC", "sc"), ("PQ", "pq"), ("overall", "o"))}
    return parts | {f"{group} O": float(each["o"].mean()) for group, each in frame.groupby("group")}


# ---- RISE


def _extract(answer: str) -> list[int] | None:
    for words in ("Final Score", "Final Scores"):
        for match in re.findall(rf"\*?\*?{words}\*?\*?:?\s*([\d*\s,\n]*)", answer, re.IGNORECASE):
            if re.search(r"\d", match):
                return [int(number) for number in re.findall(r"\d+", match)]
    return None


def rise(rows: Sequence[Mapping], replies: Sequence[Sequence[str]], upstream: bool) -> dict[str, float]:
    """The summary over a pandas table, where what is missing is not a number, and that is true.

    Args:
        replies: Of an item, in order; those not asked for are left out.
    """
    frame = pd.DataFrame([dict(row) for row in rows])
    marks = []
    for row, texts in zip(rows, replies):
        found = [_extract(text) for text in texts]
        free = "consistency_free" in row and row["consistency_free"] is not None
        if not all(found):
            marks.append((np.nan, np.nan, np.nan))
            continue
        flat = ([np.nan] if free else []) + [number for each in found for number in each]
        if len(flat) == 2:
            marks.append((4 * min(flat[0], 1) + 1, 4 * min(flat[1], 1) + 1, np.nan))
        else:
            assert len(flat) == 3
            marks.append(tuple(flat))
    frame[["cons", "reas", "plaus"]] = np.array(marks, dtype=float)
    frame["score"] = frame.apply(_rise_score, axis=1)
    frame["complete"] = frame.apply(lambda row: _rise_complete(row, upstream), axis=1)
    found = {"overall accuracy": 100 * frame["complete"].mean(), "overall percent": 25 * (frame["score"].mean() - 1)}
    for column in ("category", "subtask"):
        for name, each in frame.groupby(column):
            found |= {
                f"{name} accuracy": 100 * each["complete"].mean(),
                f"{name} percent": 25 * (each["score"].mean() - 1),
            }
    parts = (("consistency", "cons"), ("reasoning", "reas"), ("plausibility", "plaus"))
    return found | {name: frame[column].mean() for name, column in parts}


def _rise_score(row: pd.Series) -> float:
    if row["category"] == "logical_reasoning":
        score = 0.3 * row["cons"] + 0.7 * row["reas"]
    elif "consistency_free" in row and row["consistency_free"]:
        score = 0.2 * row["plaus"] + 0.8 * row["reas"]
    else:
        score = 0.3 * row["cons"] + 0.5 * row["reas"] + 0.2 * row["plaus"]
    if row["reas"] == 1:
        score = score / 2
        return 1 if score < 1 else score
    return score


def _rise_complete(row: pd.Series, upstream: bool) -> int:
    if row["category"] == "logical_reasoning":
        return int(row["cons"] == 5 and row["reas"] == 5)
    if upstream and "consistency_free" in row and not pd.isna(row["consistency_free"]):
        return int(row["reas"] == 5 and row["plaus"] == 5)
    return int(row["cons"] == 5 and row["reas"] == 5 and row["plaus"] == 5)


# ---- KRIS-Bench


def kris_single(reply: str, key: str, knowledge: bool) -> int | None:
    match = re.search(r"\{[^{}]*" + key + r"[^{}]*\}", reply, re.DOTALL)
    if match:
        try:
            value = json.loads(match.group())[key]
            if value is not None:
                return int(value)
            if knowledge:
                return None
        except Exception:  # as the script does
            pass
    label = key.removesuffix("_score") + r"[_\s]*score\s*[:：]?\s*([1-5])"
    for pattern in (label, r"([1-5])\s*/\s*5", r"([1-5])\s+out\s+of\s+5", r"\b([1-5])\b"):
        if match := re.search(pattern, reply, re.IGNORECASE | re.DOTALL):
            return int(match.group(1))
    return None


def kris_dual(reply: str) -> tuple[int | None, int | None]:
    data = None
    try:
        data = json.loads(reply)
    except ValueError:
        depth, start = 0, None
        for index, letter in enumerate(reply):
            if letter == "{":
                start = index if start is None else start
                depth += 1
            elif letter == "}" and depth:
                depth -= 1
                if not depth:
                    try:
                        data = json.loads(reply[start : index + 1])
                    except ValueError:
                        data = None
                    break
    if data:
        values = [data.get("instruction_score"), data.get("knowledge_score")]
        return tuple(None if value is None else int(value) for value in values)
    found = [re.search(rf'"?{word}[_\s]*score"?\s*:\s*([1-5])', reply, re.I) for word in ("instruction", "knowledge")]
    return tuple(int(match.group(1)) if match else None for match in found)


def kris_summary(rows: Sequence[tuple[str, Sequence[float]]], meta: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Flat means of all marks, by type, by kind of knowledge, and over all."""
    frame = pd.DataFrame([(kind, 25 * (mark - 1)) for kind, marks in rows for mark in marks], columns=["kind", "mark"])
    found = frame.groupby("kind")["mark"].mean().to_dict() | {"overall": frame["mark"].mean()}
    for name, kinds in meta.items():
        part = frame[frame["kind"].isin(kinds)]
        found |= {name: part["mark"].mean()} if len(part) else {}
    return found
