"""As many edits of easy-VQA as asked for, in exact shares: the rows are gone through, over and over if need be, until
each planned edit is found. Writer, editor and verifier are those of `uniedit_hf.small_world.rules`."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count

from tqdm.auto import tqdm

from uniedit_hf.calls.messages import Picture
from uniedit_hf.randomness import python_random
from uniedit_hf.schema import stable_id
from uniedit_hf.small_world.asking import Asking, asked
from uniedit_hf.small_world.easy_vqa import VqaRow, one_row_per_image
from uniedit_hf.small_world.instructions import Plan, draw_plain_edit
from uniedit_hf.small_world.question_drafts import draft_of_row
from uniedit_hf.small_world.rules import draw_exactly, read_back, with_instruction, write_by_rules
from uniedit_hf.small_world.source_images import Source, source_of_record, source_of_row
from uniedit_hf.small_world.topics import CATEGORIES, PLAIN_KINDS, Category, PlainKind
from uniedit_hf.synthesis.records import Draft, Record, Rejection, finished


Result = Record | Rejection


@dataclass(frozen=True)
class Shares:
    """How often each sort of intelligent instruction is drawn. Weights need not add up to 1.

    Args:
        categories: By what the embedded question is about.
        depths: By how many conditions are nested.
        false_conditions: How often the outermost condition does not hold.
        unchanged: How often the picture is to be left as it is.

    Raises:
        ValueError: An unknown name, a negative weight, or a share outside of 0 to 1.
    """

    categories: Mapping[Category, float] = field(
        default_factory=lambda: {"shape": 0.25, "color": 0.25, "count": 0.15, "location": 0.2, "knowledge": 0.15}
    )
    depths: Mapping[int, float] = field(default_factory=lambda: {1: 0.5, 2: 0.3, 3: 0.2})
    false_conditions: float = 0.5
    unchanged: float = 0.25

    def __post_init__(self):
        check_weights("categories", self.categories, CATEGORIES)
        check_weights("depths", self.depths, (1, 2, 3))
        for name, share in (("false_conditions", self.false_conditions), ("unchanged", self.unchanged)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is a share between 0 and 1, got {share}")


def synthesize(
    rows: Sequence[VqaRow], *, seed: int, size: int, shares: Shares | None = None, asking: Asking = "question"
) -> Iterator[Result]:
    """Intelligent edits of training pictures, with a progress bar.

    Args:
        rows: Questions about training pictures.
        seed: Decides every choice; the same rows, seed, size and shares give the same records.
        size: How many records to make; rejections come in addition.
        shares: How often each sort is drawn.
        asking: How they are asked for; records that differ in this alone differ in nothing but the instruction.

    Raises:
        ValueError: A row is not of the training split, or the rows cannot give what the shares ask for.
    """
    check_training_rows(rows)
    return intelligent_edits(rows, seed=seed, size=size, shares=shares, asking=asking)


def synthesize_plain(
    rows: Sequence[VqaRow], *, seed: int, size: int, kinds: Mapping[PlainKind, float] | None = None
) -> Iterator[Result]:
    """Plain edits of training pictures: `plain_edits` behind the check of `synthesize`."""
    check_training_rows(rows)
    return plain_edits(rows, seed=seed, size=size, kinds=kinds)


def intelligent_edits(
    rows: Sequence[VqaRow], *, seed: int, size: int, shares: Shares | None = None, asking: Asking = "question"
) -> Iterator[Result]:
    """Like `synthesize`, for rows of any split: edits of test pictures are for measuring, never for training."""
    shares = shares or Shares()
    wanted = [name for name, weight in shares.categories.items() if weight]
    pools = {category: _pool(rows, category, seed) for category in wanted}
    endless = {category: _endless(pool) for category, pool in pools.items()}
    seen: set[str] = set()
    for index in tqdm(range(size), desc="Intelligent edits", unit="edit", mininterval=0.5):
        plan = draw_plan(shares, python_random(seed, index, "plan"))
        make = partial(intelligent_edit, plan=plan, seed=seed, asking=asking)
        yield from _until_record(endless[plan.category], make, seen, 2 * len(pools[plan.category]))


def plain_edits(
    rows: Sequence[VqaRow], *, seed: int, size: int, kinds: Mapping[PlainKind, float] | None = None
) -> Iterator[Result]:
    """Direct edits ("make the shape red.") of the rows' pictures, which take turns.

    Args:
        rows: Only their pictures matter, of any split.
        seed: Decides every choice.
        size: How many records to make; rejections come in addition.
        kinds: How often each of `PLAIN_KINDS` is drawn; all alike by default.

    Raises:
        ValueError: There are no rows, a kind is unknown, or no row gives an edit.
    """
    weights = dict.fromkeys(PLAIN_KINDS, 1.0) if kinds is None else kinds
    check_weights("kinds", weights, PLAIN_KINDS)
    pool = _shuffled(one_row_per_image(rows), seed, "plain")
    endless, seen = _endless(pool), set()
    for index in tqdm(range(size), desc="Plain edits", unit="edit", mininterval=0.5):
        kind = _weighted(weights, python_random(seed, index, "kind"))
        yield from _until_record(endless, partial(_plain_edit_of_row, kind=kind, seed=seed), seen, 2 * len(pool))


def plain_counterpart(record: Record, *, seed: int, kinds: Collection[PlainKind] = PLAIN_KINDS) -> Result:
    """A plain edit of the picture that a record starts from, for a control that sees the same pictures."""
    source = source_of_record(record)
    if isinstance(source, Rejection):
        return source
    order = python_random(seed, record.id, "kinds").sample(list(kinds), len(kinds))
    results = (plain_edit(source, kind, seed=seed, draw=record.id) for kind in order)
    return next((result for result in results if isinstance(result, Record)), Rejection("no plain edit", record.id))


def intelligent_edit(row: VqaRow, draw: int, *, plan: Plan, seed: int, asking: Asking = "question") -> Result:
    """One intelligent edit of a row: draw the instruction, draw the target, verify it.

    Args:
        row: A question about a picture.
        draw: Counts the edits of the same row.
        plan: What the instruction should be like.
        seed: Decides every choice, with row and draw.
        asking: How it is asked for; the id is that of the instruction with its question.
    """
    draft = draft_of_row(row)
    if isinstance(draft, Rejection):
        return draft
    written = write_by_rules(draft, plan, python_random(seed, draft.id, f"instruction {plan} {draw}"))
    record = _edited(written)
    if isinstance(record, Rejection):
        return record
    phrasing = python_random(record.id, "asking")
    return replace(record, instruction=asked(asking, record.instruction, written.program, written.scene, phrasing))


def plain_edit(source: Source, kind: PlainKind, *, seed: int, draw: int | str) -> Result:
    """One plain edit of a picture; `draw` tells edits of the same picture apart."""
    picture_id = stable_id(source.image)
    instruction = draw_plain_edit(source.scene, kind, python_random(seed, picture_id, f"plain {kind} {draw}"))
    if isinstance(instruction, str):
        return Rejection(instruction, picture_id)
    draft = Draft(
        position=(0, 0),
        id=picture_id,
        image=Picture(source.image),
        question=None,
        answer=None,
        source="easy-vqa",
        license=source.license,
        split=source.split,
        scene=source.scene,
    )
    category = None if kind == "size" else kind  # the data set has no category for size
    return _edited(with_instruction(draft, instruction, category, {"depth": 0, "changed": True}))


def draw_plan(shares: Shares, rng: random.Random) -> Plan:
    """What the next instruction should be like."""
    category, depth = _weighted(shares.categories, rng), _weighted(shares.depths, rng)
    return Plan(category, depth, rng.random() >= shares.false_conditions, rng.random() >= shares.unchanged)


def check_training_rows(rows: Sequence[VqaRow]) -> None:
    """Raises ValueError for the first row that is not of the training split."""
    for index, row in enumerate(rows):
        if row.split != "train":
            raise ValueError(
                f"Row {index} ({row.question!r} about {row.image_path.name}) is of the split {row.split!r}; training "
                'data is made of training pictures only: pass rows of `load_easy_vqa("train")`.'
            )


def check_weights(option: str, weights: Mapping, names: Collection) -> None:
    """Raises ValueError for an unknown name, a negative weight, or weights without a positive one."""
    unknown = [name for name in weights if name not in names]
    if unknown or not weights or min(weights.values()) < 0 or not sum(weights.values()):
        raise ValueError(
            f"{option} gives weights of 0 or more, one of them positive, to some of {', '.join(map(str, names))}; "
            f"got {dict(weights)}"
        )


def _edited(draft: Draft | Rejection) -> Result:
    verified = draft if isinstance(draft, Rejection) else read_back(draw_exactly(draft))
    return verified if isinstance(verified, Rejection) else finished(verified)


def _plain_edit_of_row(row: VqaRow, draw: int, *, kind: PlainKind, seed: int) -> Result:
    source = source_of_row(row)
    return source if isinstance(source, Rejection) else plain_edit(source, kind, seed=seed, draw=draw)


def _until_record(
    candidates: Iterator[tuple[VqaRow, int]], make: Callable[[VqaRow, int], Result], seen: set[str], limit: int
) -> Iterator[Result]:
    """Rejections up to the next new record, and that record."""
    for _ in range(limit):
        result = make(*next(candidates))
        if isinstance(result, Record) and result.id in seen:
            result = Rejection("the same edit was drawn before", result.id)
        yield result
        if isinstance(result, Record):
            seen.add(result.id)
            return
    raise ValueError(f"{limit} rows were tried in vain for one edit; the last was rejected because {result.reason}.")


def _pool(rows: Sequence[VqaRow], category: Category, seed: int) -> list[VqaRow]:
    """The rows that a category can be made of, shuffled: those that ask about it, or one of each picture where the
    question is composed."""
    of_category = category in ("shape", "color")
    pool = [row for row in rows if row.attribute == category] if of_category else one_row_per_image(rows)
    return _shuffled(pool, seed, category)


def _shuffled(rows: Sequence[VqaRow], seed: int, purpose: str) -> list[VqaRow]:
    if not rows:
        raise ValueError(f"There are no rows for {purpose} edits; pass the rows of `load_easy_vqa`.")
    return python_random(seed, purpose, "order").sample(rows, len(rows))


def _endless(rows: Sequence[VqaRow]) -> Iterator[tuple[VqaRow, int]]:
    """The rows over and over, with the number of the round."""
    return ((row, draw) for draw in count() for row in rows)


def _weighted(weights: Mapping, rng: random.Random):
    return rng.choices(list(weights), list(weights.values()))[0]
