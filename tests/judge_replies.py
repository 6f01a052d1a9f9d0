"""Replies of a judge as they come: forms x marks x noise. What should be read follows from how a reply was made."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import product


# ---- Forms: from labels and marks to a reply of one line a mark, or JSON.

Form = Callable[[Sequence[str], Sequence[int], int], str]


def _lines(line: str, before: str = "", after: str = "\n") -> Form:
    def form(labels, marks, high):
        pairs = enumerate(zip(labels, marks), 1)
        return before + after.join(line.format(label=label, mark=mark, high=high, number=number)
                                   for number, (label, mark) in pairs)  # fmt: skip

    return form


def _json(wrap: str = "{}", value: Callable = lambda mark, high: mark, key: Callable = lambda label: label) -> Form:
    def form(labels, marks, high):
        written = {key(label): value(mark, high) for label, mark in zip(labels, marks)} | {"reasoning": "2/5, or so"}
        return wrap.replace("{}", json.dumps(written))

    return form


def snake(label: str) -> str:
    return label.lower().replace(" ", "_")


FORMS: dict[str, Form] = {
    "plain": _lines("{label}: {mark}"),
    "bold label": _lines("**{label}**: {mark}"),
    "bold label and colon": _lines("**{label}:** {mark}"),
    "bold mark": _lines("{label}: **{mark}**"),
    "all bold": _lines("**{label}: {mark}**"),
    "over": _lines("{label}: {mark}/{high}"),
    "spaced over": _lines("**{label}**: {mark} / {high}"),
    "out of": _lines("{label}: {mark} out of {high}"),
    "score": _lines("{label} Score: {mark}"),
    "scale in label": _lines("{label} (up to {high}): {mark}"),
    "comment": _lines("{label}: {mark} (2 of 3 parts are right)"),
    "dash and comment": _lines("{label}: {mark} - as 3 of 4 agree"),
    "comma and comment": _lines("{label}: {mark}, because 2 of 4 are there"),
    "full stop": _lines("{label}: {mark}."),
    "decimal": _lines("{label}: {mark}.0"),
    "bullets": _lines("- {label}: {mark}"),
    "stars": _lines("* **{label}**: {mark}"),
    "numbered": _lines("{number}. {label}: {mark}"),
    "trailing blanks": _lines("{label}: {mark}   "),
    "crlf": _lines("{label}: {mark}", after="\r\n"),
    "blank lines": _lines("{label}: {mark}", after="\n\n\n"),
    "wide colon": _lines("{label}：{mark}"),
    "equals": _lines("{label} = {mark}"),
    "one line": _lines("{label}: {mark}", after=", "),
    "semicolons": _lines("{label}: {mark}", after="; "),
    "table": _lines("| {label} | {mark} |", before="| what | mark |\n|---|---|\n"),
    "headings": _lines("### {label}\n{mark}"),
    "headings with score": _lines("### {label}\n**Score:** {mark}/{high}\nGood enough."),
    "code": _lines("`{label}`: `{mark}`"),
    "quoted": _lines("> {label}: {mark}"),
    "json": _json(),
    "json with snake keys": _json(key=snake),
    "json with score keys": _json(key=lambda label: f"{snake(label)}_score"),
    "json of strings": _json(value=lambda mark, high: str(mark)),
    "json of fractions": _json(value=lambda mark, high: f"{mark}/{high}"),
    "json of objects": _json(value=lambda mark, high: {"score": mark, "reason": "3 of 4"}),
    "fenced json": _json("```json\n{}\n```"),
    "json in words": _json("My marks are these:\n{}\nThat is all."),
    "json in json": _json('{"result": {}}'),
    "json with a comma too many": lambda labels, marks, high: (
        "{" + "".join(f'"{snake(label)}_score": {mark}, ' for label, mark in zip(labels, marks)) + "}"
    ),
    "python": lambda labels, marks, high: str(dict(zip(map(snake, labels), marks))),
    "json list": lambda labels, marks, high: json.dumps(
        [{"metric": label, "score": mark, "reason": "2 of 5"} for label, mark in zip(labels, marks)]
    ),
    "elements": lambda labels, marks, high: "\n".join(
        f"<{snake(label)}>{mark}</{snake(label)}>".replace("&", "and") for label, mark in zip(labels, marks)
    ),
    "reasons and then the score": _lines("- {label}: The image shows 2 cats.\n  Score: {mark}"),
    "ideographic": _lines("{label}： {mark}。"),
    "check mark": _lines("✅ {label}: {mark} ⭐"),
    "given": _lines("{label}: I would give it a {mark}."),
    # what outsiders' judges write besides
    "em dash": _lines("**{label}** — {mark}"),
    "dot leaders": _lines("{label} ........ {mark}/{high}"),
    "number in parentheses": _lines("({number}) {label}: {mark}"),
    "stars and mark": _lines("{label}: ⭐⭐⭐ ({mark}/{high})"),
    "angle brackets": _lines("{label}: <{mark}>"),
    "mark in parentheses": _lines("**{label} ({mark})**: The image shows 2 cats."),
    "fraction in parentheses": _lines("**{label} ({mark}/{high})**: The image shows 2 cats."),
    "score in parentheses": _lines("**{label} (Score: {mark})**: good, 2 of 3."),
    "heading with dash": _lines("### {label} — Score: {mark}\nGood."),
    "bold and a remark": _lines("**{label}: {mark}** – 1 of 3 reasons."),
    "rated in a list": _lines("{label} {mark}", before="I rate ", after=", "),
    "would give": _lines("I would give {label} a score of {mark}."),
    "give after a comma": _lines("For {label}, I give {mark}."),
    "would be": _lines("The {label} score would be {mark}."),
    "rate this as": _lines("{label}: I'd rate this as a {mark}."),
    "grade and mark": _lines("{label}: Exemplary - {mark}"),
    "mark and grade": _lines("{label}: {mark}: Exemplary"),
    "level": _lines("{label}: Level {mark}"),
    "over in words": _lines("{label}: {mark} over {high}"),
    "assessment": _lines("{label} Assessment: {mark}"),
    "score for": _lines("Score for {label}: {mark}"),
    "brackets around the label": _lines("[{label}]: {mark}"),
    "parentheses around the label": _lines("({label}) {mark}"),
    "struck": _lines("~~{label}~~: {mark}"),
    "double arrow": _lines("{label} ⇒ {mark}"),
    "key cap": _lines("{label}: {mark}\ufe0f\u20e3"),
    "with flaws": _lines("{label}: {mark} with minor flaws"),
    "em dash and remark": _lines("{label}: {mark}—it shows 1 cat"),
    "ellipsis": _lines("{label}: {mark}…"),
    "slashes": _lines("{label}: {mark} // it shows 1 cat"),
    "number sign": _lines("{label}: {mark} # it shows 1 cat"),
    "remark behind a bar": _lines("{label}: {mark} | it shows 1 cat"),
    "therefore": _lines("{label}: The image shows 2 cats of 3. Therefore, {mark}."),
    "score in the same line": _lines("{label}: The image shows 2 cats of 3. Score: {mark}"),
    "table with reasons": _lines(
        "| **{label}** | **{mark}/{high}** | 3 of 4 |", before="| What | Mark | Why |\n|:--|:-:|--|\n"
    ),
    "table across": lambda labels, marks, high: (
        f"| {' | '.join(labels)} |\n|{'---|' * len(labels)}\n| {' | '.join(map(str, marks))} |"
    ),
    "yaml": _lines("{label}:\n  score: {mark}\n  reason: 2 of 3", before="```yaml\n"),
    "latex": _lines("\\textbf{{{label}}}: $\\frac{{{mark}}}{{{high}}}$"),
    "html": _lines("<p><strong>{label}</strong>: {mark}<br/>"),
    "html comment": _lines("{label}: {mark} <!-- 1 of 2 -->"),
    "attributes": _lines('<score name="{label}">{mark}</score>'),
    "json with a comment": lambda labels, marks, high: (
        "{\n" + ",\n".join(f'"{snake(label)}": {mark}' for label, mark in zip(labels, marks)) + "  // 2 of 3\n}"
    ),
    "json list in an object": lambda labels, marks, high: json.dumps(
        {"results": [{"criterion": label, "why": "1 of 2", "rating": mark} for label, mark in zip(labels, marks)]}
    ),
    "json of lists": _json(value=lambda mark, high: [str(mark)]),
    "json in camel case": _json(key=lambda label: snake(label).title().replace("_", "")),
    "cut json": lambda labels, marks, high: (
        "{" + "".join(f'"{label}": {mark}, ' for label, mark in zip(labels, marks)) + '"reasoning": "about 2/5 of the'
    ),
}


# ---- Noise: what a judge says besides. None of it is a mark.

NOISE: dict[str, Callable[[str], str]] = {
    "nothing": lambda reply: reply,
    "reasons before": lambda reply: f"The edit covers 2/5 of the sky, and 3 of 4 dogs are there.\n\n{reply}",
    "reasons after": lambda reply: f"{reply}\n\nOn 4/5/2023 I would have said so too; see [1] and (3, 4).",
    "a thought": lambda reply: f"<think>Perhaps 1? No: 2 of the 5 are wrong.</think>\n{reply}",
    "a thought without its beginning": lambda reply: f"Perhaps 1? Consistency: 1. 2 of the 5.\n</think>\n\n{reply}",
    "greeting": lambda reply: f"Sure! Here are my marks for image 2:\n{reply}\nLet me know if 1 or 2 need changes.",
    "answer element": lambda reply: f"<reasoning>2 of 3, realism 1?</reasoning>\n<answer>\n{reply}\n</answer>",
    "boxed by tokens": lambda reply: f"<think>2 of 3</think><|begin_of_box|>{reply}<|end_of_box|>",
    "another thought": lambda reply: f"◁think▷Perhaps 1 of 5?◁/think▷\n{reply}",
    "bracketed thought": lambda reply: f"[THINK]Perhaps 1 of 5?[/THINK]{reply}",
    "channels": lambda reply: (
        f"<|channel|>analysis<|message|>Consistency: 1?<|end|><|start|>assistant<|channel|>final<|message|>{reply}"
    ),
    "end of turn": lambda reply: f"{reply}<|im_end|>",
    "escaped": lambda reply: reply.replace("_", "\\_").replace("**", "\\*\\*"),
    "sums": lambda reply: f"{reply}\n\nTotal: 7/10\nAverage: 2.67\nWiScore = (0.7 * 2 + 0.2 * 1) / 2 = 0.8",
    "byte order mark": lambda reply: f"\ufeff{reply}\n\n",
}


# ---- Marks that are none: each in place of the mark of a label.

BAD = (
    "1.5",
    "7/10",
    "20",
    "100%",
    "14",
    "1/50",
    "1-2",
    "1 to 2",
    "-1",
    "n/a",
    "",
    "1 of the 3 parts",
    "1+",
    "4/5/2023",
    "1,5",
    "2 or 1",
    "1 (or 2)",
    "2 → 1",
    "1..2",
    "1 / 2 / 0",
    "~1",
    "½",
    "2nd",
    "2 cats",
    "one of the cats",
    "1 | 2 |",
    "99",
    "TBD",
)


def readable(names: Sequence[str], low: int, high: int) -> Iterator[tuple[str, str, list[int]]]:
    """Name, reply and marks for every form and noise, with marks drawn from a seed."""
    rng = random.Random(0)
    for form, noise in product(FORMS, NOISE):
        marks = [rng.randint(low, high) for _ in names]
        yield f"{form}, {noise}", NOISE[noise](FORMS[form](names, marks, high)), marks


def unreadable(names: Sequence[str], low: int, high: int) -> Iterator[tuple[str, str]]:
    """Name and reply for every bad mark in every place, in forms with a line a mark."""
    for bad, place, noise in product(BAD, range(len(names)), ("nothing", "reasons before", "reasons after")):
        written = [bad if index == place else low for index in range(len(names))]
        lines = "\n".join(f"{name}: {mark}" for name, mark in zip(names, written))
        yield f"{bad} as {names[place]}, {noise}", NOISE[noise](lines)
