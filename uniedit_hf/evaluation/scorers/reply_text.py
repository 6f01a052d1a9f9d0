"""From a judge's reply to plain text and JSON objects: reasoning, markup and special tokens are removed."""

from __future__ import annotations

import json
import re
import unicodedata
from math import inf


DECODER = json.JSONDecoder(strict=False, parse_int=lambda digits: int(digits) if len(digits) < 10 else inf)
MOST_OBJECTS = 200

# Reasoning from its opening tag at the start of a line to its closing tag; some servers omit the opening tag.
TAG = r"(?:seed:)?(?:think(?:ing)?|thought|reasoning)"
THOUGHT = re.compile(
    rf"^\s*(?:<{TAG}>.*?(?:</{TAG}>|\Z)|\[THINK\].*?(?:\[/THINK\]|\Z)|◁think▷.*?(?:◁/think▷|\Z))",
    re.DOTALL | re.IGNORECASE | re.MULTILINE,
)
THOUGHT_END = re.compile(rf"\A.*(?:\n\s*</{TAG}>|</{TAG}>\s*\n)", re.DOTALL | re.IGNORECASE)
CHANNELS = re.compile(r"\A.*<\|channel\|>\s*final\s*<\|message\|>", re.DOTALL)  # the model's notes come before

SPECIAL_TOKEN = re.compile(r"<\|[^|<>\n]{1,40}\|>|</?s>")
ESCAPED = re.compile(r"\\([_*\[\]()#|~])")  # Markdown, and LaTeX's \( and \[
FRACTION = re.compile(r"\\d?frac\{(\d+)\}\{(\d+)\}")
COMMAND = re.compile(r"\\(?:boxed|underline|emph|text[a-z]*|math[a-z]*)\{([^{}]*)\}")

# Bold from a label to its mark; a remark follows, unless the mark goes on.
BOLD_MARK = re.compile(
    r"(\*\*[^*\n]{0,60}[A-Za-z][^*\n]{0,60}\d)\*\*"
    r"(?=[ \t]+(?!(?:out|of|over|to|or|and|points?)\b)[A-Za-z–—-])"
)

COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
INLINE = re.compile(r"</?(?:b|strong|i|em|u|span|code|mark|font|small)(?:\s[^<>]*)?>", re.IGNORECASE)
ATTRIBUTE = re.compile(
    r"<[A-Za-z]\w*\s+(?:name|metric|criterion|category|aspect|dimension|label)=[\"']([^\"'<>]+)[\"'][^<>]*>"
)
ELEMENT = re.compile(r"<([A-Za-z][A-Za-z_ -]{0,40})>")
ELEMENT_END = re.compile(r"</[A-Za-z_ -]{1,41}>|<[a-z]{2,5} ?/>")
ANGLE = re.compile(r"<(\d+(?:/\d+)?)>")

NO_DIGITS = str.maketrans(dict.fromkeys("⁰¹²³⁴⁵⁶⁷⁸⁹", " ") | {"。": "."})
INVISIBLE = re.compile("[\u200b-\u200d\u2060\ufeff\ufe0f\u20e3*`$]|~~")


def answer(reply: str) -> str:
    """The reply after the model's reasoning, without special tokens."""
    text = THOUGHT_END.sub("", THOUGHT.sub("\n", CHANNELS.sub("", reply)))
    return SPECIAL_TOKEN.sub("\n", ESCAPED.sub(r"\1", text))


def split_objects(text: str) -> tuple[list[dict], str]:
    """All JSON objects of a text, and the text without them. Raw newlines in strings are accepted."""
    objects, rest, done, place = [], [], 0, text.find("{")
    for _ in range(MOST_OBJECTS):
        if place < 0:
            break
        try:
            found, end = DECODER.raw_decode(text, place)
            objects.append(found)
            rest.append(text[done:place])
            done = end
        except (ValueError, RecursionError):
            end = place + 1
        place = text.find("{", end)
    return objects, "\n".join([*rest, text[done:]])


def plain_text(text: str) -> str:
    """The text without emphasis and the like, in ASCII where there is an equivalent, with single blanks; a table whose
    columns are labels becomes a line per label.
    """
    if "\n" not in text:
        text = re.sub(r"\\n(?![a-z])", "\n", text)  # escaped twice
    text = BOLD_MARK.sub(r"\1; ", text)
    text = unicodedata.normalize("NFKC", INVISIBLE.sub("", text.translate(NO_DIGITS)))
    text = "".join(letter for letter in text if unicodedata.category(letter) != "So")  # stars, check marks
    text = COMMAND.sub(r" \1 ", FRACTION.sub(r"\1/\2", text))
    text = ATTRIBUTE.sub(r"\n\1: ", INLINE.sub("", COMMENT.sub(" ", text)))
    text = ANGLE.sub(r" \1 ", ELEMENT_END.sub("\n", ELEMENT.sub(r"\n\1: ", text)))
    text = re.sub(r"(?<=\d)[ \t]+#+[ \t]+", ", ", text).replace("#", "")
    text = re.sub(r" *\n[ \n]*", "\n", re.sub(r"[ \t_]+", " ", re.sub(r"\r\n?", "\n", text))).strip()
    return turned_tables(text)


def turned_tables(text: str) -> str:
    """The text, where a row of labels above a row of numbers becomes a line per label."""
    if "|" not in text:
        return text
    lines: list[str] = []
    for line in text.split("\n"):
        cells = _cells(line)
        above = next((each for each in reversed(lines[-2:]) if not re.fullmatch(r"[|: -]*", each)), "")
        labels = _cells(above)
        if len(cells) == len(labels) > 0 and all(re.match(r"\d", each) for each in cells):
            if "|" in above and not any(re.search(r"\d", each) for each in labels):
                lines += [f"{label}: {cell}" for label, cell in zip(labels, cells)]
                continue
        lines.append(line)
    return "\n".join(lines)


def _cells(line: str) -> list[str]:
    return [each.strip() for each in line.strip().strip("|").split("|")] if "|" in line else []
