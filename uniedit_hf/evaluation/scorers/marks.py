"""Reads marks from a judge's reply.

A mark is a number on the scale that the reply labels as the score (a whole number if marks are whole): `Realism: 2`,
`**Realism**: 2/2 (good)`, `{"realism_score": 2}`. Other numbers in a reply, such as a fraction in the reasoning, a
date or the explanation of a scale, are not marks, and a reply without its marks is a parse error. No reply raises an
exception.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from uniedit_hf.evaluation.scorers.reply_text import answer, plain_text, split_objects


@dataclass(frozen=True)
class Marks:
    """Marks by name, or the reason why there are none. A reply that cannot be read has no marks and never counts as a
    number.

    Args:
        marks: By name, e.g. `{"consistency": 2}`.
        problem: The error in the reply, or "".
    """

    marks: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""

    @property
    def status(self) -> str:
        """`"ok"` or `"parse_error"`."""
        return "parse_error" if self.problem else "ok"


def mean(values: Iterable[float]) -> float | None:
    """The mean, or `None` without marks."""
    values = list(values)
    return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class Scale:
    """The scale of marks.

    Args:
        low: The lowest mark.
        high: The highest.
        whole: Whether marks are whole numbers.
        least: Minimum number of marks per label.
        most: Maximum number of marks per label.
    """

    low: int
    high: int
    whole: bool = True
    least: int = 1
    most: int = 1

    def problem(self, values: Sequence[float]) -> str:
        """The reason why these numbers are not the marks of a label, or ""."""
        if not self.least <= len(values) <= self.most:
            return f"{len(values)} marks, expected {self.least}" + f" to {self.most}" * (self.least < self.most)
        for value in values:
            if not self.low <= value <= self.high:
                return f"a mark of {value:g}, expected {self.low} to {self.high}"
            if self.whole and value != int(value):
                return f"a mark of {value:g}, expected a whole number"
        return ""


def read(reply: str, names: Mapping[str, Sequence[str]], scale: Scale, others: Sequence[str] = ()) -> Marks:
    """The marks of a reply.

    Args:
        names: The possible labels of each mark. If a label has several numbers, there is one name, and the marks are
            named "1", "2", ...
        others: For a single mark, labels that count if its own is missing, such as "score".
    """
    page = _Page(reply, scale, [label for labels in names.values() for label in labels])
    marks: dict[str, tuple[float, ...]] = {}
    for name, labels in names.items():
        found = page.stated(labels)
        if found is None and others:
            found = page.stated(others) or page.unlabeled()
        if found is None:
            return Marks(problem=f"no mark for {name}")
        if found.problem:
            return Marks(problem=f"{name}: {found.problem}")
        marks[name] = found.values
    if scale.most == 1:
        return Marks({name: values[0] for name, values in marks.items()})
    return Marks({str(index): value for values in marks.values() for index, value in enumerate(values, 1)})


# ---- Labels in JSON


def _values(found: dict, label: re.Pattern, depth: int = 3) -> Iterator[Any]:
    """The values whose keys are labels, also in nested objects and lists, and objects that are named as a label."""
    if any(isinstance(name := found.get(key), str) and label.fullmatch(plain_text(name)) for key in NAMES):
        yield found
    for key, value in found.items():
        if label.fullmatch(plain_text(key)):
            yield value
        elif depth:
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, dict):
                    yield from _values(each, label, depth - 1)


NAMES = ("name", "metric", "criterion", "category", "aspect", "dimension", "label")


# ---- Labels and what follows them

# Words that may precede a label, and follow it.
BEFORE = (
    r"(?:final|overall|image|visual|revised|updated|corrected|the|my|and|for|give|score|rating|mark|"
    r"I(?:['’]d)?|would|rate|assign|award)"
)
BEHIND = r"(?:[\s\-]*(?:following|adherence|compliance|scores?|ratings?|marks?|grade|result|assessment|evaluation))*"
NOTE = r"(?:\s*(\([^()\n]{0,60}\)|\[[^\[\]\n]{0,60}\]))?"  # such as "(0-2)"
ORDINARY = ("score", "scores", "rating", "mark", "grade")  # labels only with a colon or similar
HARD = r"[\"'”’\])]*\s*(?:[:=|]|->|=>|→|⇒)\s*[\"'“‘]*"  # the following number is meant as the mark
SOFT = (
    r"[\])]?\s*(?:[-–—]\s+(?:(?:score|rating|mark)\s*[:=]\s*)?|\.{2,}\s*"
    r"|\s(?:is|was|of|gets|at|would\s+be)\s+(?:a\s+)?|\sa\s+(?:score|rating|mark)\s+of\s+"
    r"|,\s+I\s+(?:would\s+)?(?:give|rate|assign)\s+(?:it\s+)?(?:an?\s+)?(?:(?:score|rating|mark)\s+of\s+)?|\s)"
)
BELOW = r"[\"'”’]*\s*:?\s*\n\s*(?:[-•]\s+)?"
FILLER = (
    r"(?:(?:score|rating|rated?|mark|grade|value|level|is|of|as|an?|I(?:['’]d| would)?|give|assign|it|this)\b"
    r"\s*[:=]?\s*)*"
)
SCORE_LINE = re.compile(r"(?:\n\W*|[.;!] )(?:score|rating|mark) ?[:=] ?", re.IGNORECASE)
EXPLAINING = re.compile(r"\b(?:scale|where|range|rubric|legend|possible|example)\b", re.IGNORECASE)
FINAL = re.compile(
    r"\b(?:final|finally|revised|updated|corrected|correction|adjusted|wait|actually|instead|reconsider\w*)\b|"
    r"on reflection",
    re.IGNORECASE,
)

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER = rf"(?:[-+−]?\d+(?:\.\d+)?|\b(?:{'|'.join(WORDS)})\b)"
DIGITS = re.compile(r"\d{1,9}(?:\.\d{1,9})?")
UNIT = r"(?:\s*(?:(?:points?|pts?|stars?|marks?)\b|分))?"
OVER = r"(?:\s*(?:/|\(?\s*out\s+of|of|over)\s*(\d+(?:\.\d+)?)(?:\s*\))?)?"
COMMENT = (  # what may follow a mark: the end, punctuation, a remark, or the next label
    r" ?[\"'”’\])}|]*(?:\s*\Z|[ \t]*\n|\s*[,;](?!\s*[-+−\d])|\s*[.!](?=\s|\Z|[\"'”’\])}])"
    r"|\s*\((?!\s*(?:out\s+of|of|/|or|to|and)\s)|\s*[-–—]\s+(?!\d)|\s*—\s*(?=[A-Za-z])|\s*→(?!\s*\d)|\s*//|\s*\.{3}(?!\s*\d)"
    r"|\s*\|(?!\s*\d+(?:\.\d+)?\s*(?:\||\n|\Z))"
    r"|\s+(?:because|since|as|due|given|for|but|while|though|with)\b|\s+(?=[A-Za-z][A-Za-z ]{2,30}[:=]))"
)
DEFINITION = re.compile(r"\s*(?:[=:]|means?\b|indicates?\b|is\b|being\b|represents?\b|would\b|->|→|(?:[-–—]|to)\s*\d)")
BOUNDS = re.compile(r"(\d{1,9})\s*(?:[-–—]|to)\s*(\d{1,9})")
CONCLUSION = re.compile(rf"\b(?:so|therefore|thus|hence),?\s+(?:I\s+give\s+)?({NUMBER}){OVER}[.!]?\s*$", re.IGNORECASE)
RATED = re.compile(  # such as "exemplary (2)" and "exemplary - 2"
    rf"[A-Za-z]+\s*\(\s*(\d+){OVER}\s*\)\s*$|[A-Za-z][A-Za-z ]{{0,40}}?\s*(?:[:–—]|\s-|→|->|=>)\s+(\d+){OVER}[.!]?\s*$"
)
TITLED = re.compile(r":\s+[A-Za-z][^\n\d]*(?:\n|\Z)")  # a mark with its title: "2: exemplary"
GIVEN = r"\b(?:give|giving|assign|award|rate|rated|score|rating|mark|grade|deserves|gets|earns)\b[^.\n\d]{0,40}?"
NOTHING_ELSE = re.compile(r"[^A-Za-z]*(?:out of[^A-Za-z]*)?", re.IGNORECASE)


def _one_of(labels: Sequence[str]) -> str:
    """A pattern for labels, in any case, with or without hyphens, perhaps followed by "score"."""
    patterns = []
    for label in sorted(labels, key=len, reverse=True):
        words = [r"(?:&|and)" if word in ("&", "and") else re.escape(word) for word in re.split(r"[\s_\-]+", label)]
        patterns.append(rf"(?:{BEFORE}[\s\-]+)*" + r"[\s\-]*".join(words) + BEHIND)
    return f"(?:{'|'.join(patterns)})(?![A-Za-z])"


@dataclass(frozen=True)
class _Found:
    """The numbers of a label. `problem` says why they are not marks; `final` whether the reply calls them final."""

    values: tuple[float, ...] = ()
    problem: str = ""
    final: bool = False


class _Page:
    """A reply, with the marks that it should have.

    Args:
        labels: All possible labels of the reply; the next one ends a mark.
    """

    def __init__(self, reply: str, scale: Scale, labels: Sequence[str]):
        self.objects, rest = split_objects(answer(reply))
        self.text, self.scale = plain_text(rest), scale
        self.labels = _one_of(labels)
        between = r" ?(?:,|;|\band\b| ) ?"
        listed = rf"[\[(]?\s*({NUMBER}){OVER}" + rf"(?:{between}({NUMBER}){OVER})?" * (scale.most - 1)
        self.numbers = re.compile(listed + r"(?:\s*[\])])?" + UNIT, re.IGNORECASE)
        self.end = re.compile(rf"(?:{COMMENT}|\s+(?:and\s+)?{self.labels}\b)", re.IGNORECASE)

    def stated(self, labels: Sequence[str]) -> _Found | None:
        """The mark of these labels: from the last object, else the one that all lines agree on or that is called
        final.
        """
        key = re.compile(_one_of(labels) + NOTE, re.IGNORECASE)
        if in_objects := [value for each in self.objects for value in _values(each, key)]:
            return self._of_json(in_objects[-1])  # a draft comes before the final object
        in_lines = list(self._in_lines(labels))
        if len({each.values for each in in_lines}) > 1:
            final = [each for each in in_lines if each.final]
            return final[-1] if len({each.values for each in final}) == 1 else _Found(problem="two different marks")
        return in_lines[-1] if in_lines else None

    def unlabeled(self) -> _Found | None:
        """The mark of a reply that consists of only the mark, or that states it out of the highest."""
        whole = self._at(self.text, 0)
        if whole and NOTHING_ELSE.fullmatch(self.text):
            return whole
        given = rf"{GIVEN}({NUMBER})\s*(?:/|out\s+of)\s*{self.scale.high}\b(?!\.\d)(?={COMMENT})"
        found = {self._marks([each[1]]) for each in re.finditer(given, self.text, re.IGNORECASE)}
        return found.pop() if len(found) == 1 else None

    def _of_json(self, value: Any) -> _Found:
        if isinstance(value, dict):
            scored = [value[key] for key in ("score", "rating", "mark", "value") if key in value]
            value = scored[0] if scored else list(value.values())
        if isinstance(value, str):
            text = plain_text(value)
            return self._at(text, 0) or _Found(problem=f"{text[:40]!r} is not a mark")
        values = value if isinstance(value, list) else [value]
        values = [_as_number(x) if isinstance(x, str) and DIGITS.fullmatch(x) else x for x in values]
        if not all(type(each) in (int, float) for each in values):
            return _Found(problem="not a number")
        return _Found(tuple(values), self.scale.problem(values))

    def _in_lines(self, labels: Sequence[str]) -> Iterator[_Found]:
        """The text after every label, in order."""
        own, done = any(map(FINAL.search, labels)), 0  # RISE calls every score final
        for label in re.finditer(rf"(?<![A-Za-z]){_one_of(labels)}{NOTE}", self.text, re.IGNORECASE):
            before = self.text[max(done, label.start() - 200) : label.start()]
            line = before.rpartition("\n")[2]
            if re.search(r"[A-Za-z] $", line) or EXPLAINING.search(line):
                continue  # the end of a longer label, prose, or a scale that is explained
            found = self._behind(label)
            if found is not None:
                final = FINAL.search(before if done else line) or not own and FINAL.search(label[0])
                yield _Found(found.values, found.problem, bool(final))
            done = label.end()

    def _behind(self, label: re.Match) -> _Found | None:
        """The numbers after a label; `None` if the text does not state its mark."""
        ordinary = re.sub(r"[^a-z]+", " ", label[0].lower()).strip() in ORDINARY
        if hard := re.compile(HARD + FILLER, re.IGNORECASE).match(self.text, label.end()):
            line = _line(self.text, hard.end())
            if found := self._at(self.text, hard.end(), meant=True):
                return found
            if noted := self._noted(label):
                return noted
            rated = None if "\n" in hard[0] else RATED.match(line)
            if rated := rated or CONCLUSION.search(line):
                number, *over = filter(None, rated.groups())
                return self._marks([number], *over)
            return self._scored(hard.end()) if line else self._below(label)
        if not ordinary and label[1] and label[1][1:2].isdigit() and self.end.match(self.text, label.end()):
            return self._at(label[1], 0)  # "Realism (1), ..."
        if not ordinary and (soft := re.compile(SOFT, re.IGNORECASE).match(self.text, label.end())):
            found = self._at(self.text, soft.end())
            if found and not found.problem:
                return found
        return self._below(label)

    def _noted(self, label: re.Match) -> _Found | None:
        """The mark in parentheses behind a label: `Realism (2): ...`, `Realism (Score: 2/2): ...`."""
        inside = (label[1] or "")[1:-1]
        found = self._at(inside, re.compile(FILLER, re.IGNORECASE).match(inside).end())
        return found if found and not found.problem else None

    def _scored(self, place: int) -> _Found | None:
        """The numbers of a line "score" below the reasons after a label, before the next label."""
        block = self.text[place : place + 8000]
        following = re.search(rf"\n\W*{self.labels}", block, re.IGNORECASE)
        scored = SCORE_LINE.search(block, 0, following.start() if following else len(block))
        return self._at(self.text, place + scored.end(), meant=True) if scored else None

    def _below(self, label: re.Match) -> _Found | None:
        """The numbers on their own line below a label on its own line."""
        below = re.compile(BELOW + FILLER, re.IGNORECASE).match(self.text, label.end())
        if below is None or self.text[: label.start()].rpartition("\n")[2].strip(" -•0123456789.)\"'"):
            return None
        line = _line(self.text, below.end())
        found = self._at(line, 0) if NOTHING_ELSE.fullmatch(line) else None
        return found if found and not found.problem else None

    def _at(self, text: str, place: int, meant: bool = False) -> _Found | None:
        """The numbers at a position, if only a comment or the next label follows them.

        A number that is meant as the mark but is followed by something else has a `problem`; the explanation of a
        scale is not meant as a mark.
        """
        found = self.numbers.match(text, place)
        if found is None:
            return None
        cut = (
            found.end() == len(text)
            and found[0][-1] != "]"
            and self.scale.high >= 10
            and text.count("{") > text.count("}")
        )
        if cut or "[" in found[0] and "]" not in found[0]:
            return _Found(problem="the reply is cut in a mark")
        if self.end.match(text, found.end()):
            groups = found.groups()
            over = {each for each in groups[1::2] if each}
            return self._marks([each for each in groups[::2] if each], *over)
        if meant and TITLED.match(text, found.end()):
            return self._marks([each for each in found.groups()[::2] if each], *filter(None, found.groups()[1::2]))
        line = _line(text, place)
        if concluded := CONCLUSION.search(line):
            return self._marks([concluded[1]], concluded[2])
        if not meant or DEFINITION.match(text, found.end()) and self._defines(line):
            return None
        return _Found(problem=f"{line[:40]!r} is not a mark")

    def _defines(self, line: str) -> bool:
        """Whether a line explains the scale: `1 = poor`, `1-5, where 5 is best`; `3-4` is an unclear mark."""
        bounds = BOUNDS.match(line)
        return bounds is None or (int(bounds[1]), int(bounds[2])) == (self.scale.low, self.scale.high)

    def _marks(self, written: Sequence[str], *over: str | None) -> _Found:
        """The numbers as written, perhaps with the highest mark as denominator."""
        for highest in filter(None, over):
            if float(highest) != self.scale.high:
                return _Found(problem=f"{written[0][:9]} out of {highest[:9]}, expected out of {self.scale.high}")
        values = tuple(map(_as_number, written))
        return _Found(values, self.scale.problem(values))


def _line(text: str, place: int) -> str:
    """The rest of a line, at most 2,000 characters."""
    return text[place : place + 2000].partition("\n")[0]


def _as_number(written: str) -> float:
    if written.lower() in WORDS:
        return WORDS.index(written.lower())
    value = float(written.replace("−", "-"))
    return int(value) if isfinite(value) and value == int(value) else value
