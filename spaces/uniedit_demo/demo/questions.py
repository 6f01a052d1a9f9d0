"""The questions in an instruction: "if the shape is red, ..." asks "is the shape red?"."""

from __future__ import annotations

import re


MOST = 3
CONDITION = re.compile(r"\b(?:if|unless|when)\s+([^,;.?]+)", re.IGNORECASE)
QUESTION = re.compile(r"[^.;?!]+\?")
REFERS_BACK = {"so", "not", "it is", "it does", "that is the case", "possible"}
VERBS = ("is", "are", "was", "were", "can", "has", "have", "does", "do")
AFTER_VERBS = ("a", "an", "the", "its", "his", "her", "their", "like", "no", "any", "some", "more", "fewer")
BRANCH = re.compile(r"\s+(?:then|make|paint|turn|put|move|leave|keep|remove|add|replace|draw)\b.*$", re.IGNORECASE)


def embedded_questions(instruction: str) -> list[str]:
    """The questions to answer before anything is drawn: an instruction's open questions, then its conditions as yes/no
    questions; at most three.
    """
    found = [match.group().strip() for match in QUESTION.finditer(instruction)]
    for match in CONDITION.finditer(instruction):
        clause = BRANCH.sub("", match.group(1)).strip()
        if clause.lower() not in REFERS_BACK:
            found.append(as_question(clause))
    return list(dict.fromkeys(found))[:MOST]


def as_question(clause: str) -> str:
    """A statement as a question: "the sign is red" asks "is the sign red?"."""
    words = clause.split()
    place = next((i for i, word in enumerate(words) if i and word.lower() in VERBS), None)
    if place is not None:
        verb, rest = words[place].lower(), words[place + 1 :]
        if verb in ("has", "have"):
            return _question(["does" if verb == "has" else "do", *words[:place], "have", *rest])
        return _question([verb, *words[:place], *rest])
    place = next((i for i, word in enumerate(words) if i and re.fullmatch(r"[a-z]+[^s\W]s", word)), None)
    if place is not None and place + 1 < len(words) and words[place + 1].lower() in AFTER_VERBS:
        verb = words[place].removesuffix("s")
        return _question(["does", *words[:place], verb, *words[place + 1 :]])
    return _question(["is", "it", "true", "that", *words])


def _question(words: list[str]) -> str:
    return " ".join(words) + "?"
