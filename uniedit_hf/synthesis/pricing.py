"""An upper bound of the cost of a run, from the number of rows: it assumes that no row is rejected before its last
call.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from itertools import islice

from uniedit_hf.calls.budget import MILLION
from uniedit_hf.synthesis.prompt_texts import prompt
from uniedit_hf.synthesis.records import Draft
from uniedit_hf.synthesis.settings import PlannedEdits, Settings
from uniedit_hf.synthesis.sources.reading import count_source, drafts_of


SAMPLE = 200  # rows that are read, to estimate the number and length of questions per row
LETTERS_PER_TOKEN = 4
TOKENS_PER_IMAGE = 1000
TOKENS_WRITTEN = {"classify": 40, "instruct": 250, "edit": 0, "judge": 90, "quality": 60}


@dataclass(frozen=True)
class Line:
    """Calls of one stage and their maximum cost."""

    stage: str
    backend: str
    model: str
    calls: int
    tokens: int
    money: float


@dataclass(frozen=True)
class Estimate:
    """An upper bound of what a run costs.

    Args:
        rows: Number of rows of the source; None if unknown.
        questions: Number of questions in them.
        unusable: Share of the sampled rows that cannot be used.
        lines: Calls by stage.
        kept: Number of replies already in the folder, which cost nothing.
    """

    rows: int | None
    questions: int
    unusable: float
    lines: list[Line]
    kept: int

    def __str__(self) -> str:
        rows = "an unknown number of" if self.rows is None else f"{self.rows:,}"
        head = f"{rows} rows with about {self.questions:,} questions; {self.unusable:.0%} of the first cannot be used."
        table = [f"{'stage':10}{'backend':14}{'model':28}{'calls':>12}{'tokens':>16}{'cost':>12}"]
        table += [
            f"{x.stage:10}{x.backend:14}{x.model[:27]:28}{x.calls:12,}{x.tokens:16,}{x.money:12,.2f}"
            for x in self.lines
        ]
        calls, tokens = (sum(getattr(x, name) for x in self.lines) for name in ("calls", "tokens"))
        table.append(f"{'at most':52}{calls:12,}{tokens:16,}{sum(x.money for x in self.lines):12,.2f}")
        notes = (
            f"Assumed: {LETTERS_PER_TOKEN} letters per token, {TOKENS_PER_IMAGE:,} tokens per image, no rejections or "
            f"retries. {self.kept:,} replies are already in the folder and not paid again."
        )
        return "\n".join([head, *table, notes])


def estimate(settings: Settings) -> Estimate:
    """Estimates the cost: reads a few rows, and counts the others.

    Raises:
        ValueError: If the source cannot be read.
    """
    sample = list(islice(drafts_of(settings), SAMPLE))
    drafts = [row for row in sample if isinstance(row, Draft)]
    size, source = settings.balance.size, settings.source
    rows = size if isinstance(source, PlannedEdits) else count_source(source)
    read = sample[-1].position[0] + 1 if sample else 0
    if rows is None and len(sample) < SAMPLE:
        rows = read  # the sample is all there is
    questions = round(len(sample) * (rows if rows is not None else read) / read) if read else 0
    letters = sum(len(d.question or "") + len(d.answer or "") for d in drafts) / len(drafts) if drafts else 0
    edits = min(questions, size or questions)
    named = sum(draft.category is not None for draft in drafts) / len(drafts) if drafts else 0
    stages = (
        ("classify", settings.classify and settings.classify.backend, round(questions * (1 - named)), 0, "classify"),
        ("instruct", settings.instruct.backend, edits, 1, "instruct"),
        ("edit", settings.edit.backend, edits, 1, "edit"),
        ("judge", settings.verify.judge, edits, 2, "judge"),
        ("quality", settings.verify.quality, edits, 1, "quality"),
    )
    lines = []
    for stage, backend, calls, images, text in stages:
        if backend in settings.backends:
            read_tokens = (len(prompt(text).text) + letters) / LETTERS_PER_TOKEN + images * TOKENS_PER_IMAGE
            price, written = settings.backends[backend].price, TOKENS_WRITTEN[stage]
            money = 0.0
            if price is not None:
                money = (read_tokens * price.tokens_in + written * price.tokens_out) / MILLION
                money += price.image if stage == "edit" else 0.0
            tokens = round(calls * (read_tokens + written))
            lines.append(Line(stage, backend, settings.backends[backend].model, calls, tokens, calls * money))
    return Estimate(rows, questions, 1 - len(drafts) / len(sample) if sample else 0.0, lines, _kept(settings))


def _kept(settings: Settings) -> int:
    count = 0
    for file in (settings.output_dir / "work" / "calls").glob("*.sqlite"):
        connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
        count += connection.execute("SELECT COUNT(*) FROM reply WHERE backend <> 'ocr'").fetchone()[0]
        connection.close()
    return count
