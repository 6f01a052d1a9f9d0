"""Edits that are planned one by one: the plan of an edit is drawn first, then questions are tried in turn until one
becomes such an edit. So any number of edits in any shares can be made of the same 4,000 images.

A planned source is a generator: it yields a draft to try, and is sent the result. `uniedit synthesize` takes
the drafts through its stages into Parquet (the sources `planned_edits` and `plain_edits`); `made` takes them through
the same stages in memory, for the items of the suite.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from uniedit_hf.randomness import python_random
from uniedit_hf.small_world.asking import AskingStyle
from uniedit_hf.small_world.drafts import draft_of_bytes, draft_of_image, draft_of_row
from uniedit_hf.small_world.easy_vqa import VqaRow, load_easy_vqa, one_row_per_image
from uniedit_hf.small_world.instructions import EditPlan, PlainEditPlan
from uniedit_hf.small_world.rules import draw_exactly, instruct_by_rules, read_back
from uniedit_hf.small_world.topics import CATEGORIES, PLAIN_KINDS, Category, PlainKind
from uniedit_hf.synthesis.records import Draft, Record, Rejection, finished, record_id


if TYPE_CHECKING:
    from uniedit_hf.synthesis.settings import Settings

DEPTHS = (1, 2, 3)
PlannedSource = Generator[Draft | Rejection, Draft | Rejection | None, None]


@dataclass(frozen=True)
class Shares:
    """The frequency of each sort of intelligent instruction. Weights need not add up to 1.

    Args:
        categories: Weights of the subjects of the embedded question.
        depths: Weights of the numbers of nested conditions.
        false_conditions: Share of false outermost conditions.
        unchanged: Share of edits that leave the image unchanged.

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
        check_weights("depths", self.depths, DEPTHS)
        for name, share in (("false_conditions", self.false_conditions), ("unchanged", self.unchanged)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is a share between 0 and 1, got {share}")

    def draw_plan(self, rng: random.Random, asking: AskingStyle = "question") -> EditPlan:
        """Draws the plan of the next instruction; the order of the weights does not matter."""
        category = _weighted({each: self.categories.get(each, 0.0) for each in CATEGORIES}, rng)
        depth = _weighted({each: self.depths.get(each, 0.0) for each in DEPTHS}, rng)
        return EditPlan(category, depth, rng.random() >= self.false_conditions, rng.random() >= self.unchanged, asking)


def check_weights(option: str, weights: Mapping, names: Collection) -> None:
    """Raises ValueError for an unknown name, a negative weight, or weights without a positive one."""
    unknown = [name for name in weights if name not in names]
    if unknown or not weights or min(weights.values()) < 0 or not sum(weights.values()):
        raise ValueError(
            f"{option} gives weights of 0 or more, one of them positive, to some of {', '.join(map(str, names))}; "
            f"got {dict(weights)}"
        )


# ---- sources


def planned_drafts(settings: Settings, shard: int) -> PlannedSource:
    """The drafts of a shard of a run whose source is planned.

    Raises:
        ValueError: If no question becomes one of the planned edits, or there is no data set at `source.of`.
    """
    from uniedit_hf.synthesis.sources.image_files import shard_of
    from uniedit_hf.synthesis.stages.balance import quotas

    source, shards = settings.source, settings.shards
    if source.kind == "plain_edits":
        rows = enumerate(source.rows())
        mine = ((number, row) for number, row in rows if shard_of(row["source_image"], shards) == shard)
        return plain_counterparts(mine, seed=settings.seed)
    rows = load_easy_vqa("train")[: source.limit]
    sizes = quotas(settings.balance.size, dict.fromkeys(range(shards), 1.0))
    return intelligent_drafts(
        [row for row in rows if shard_of(row.image_path.name, shards) == shard],
        seed=settings.seed,
        numbers=range(sum(sizes[each] for each in range(shard)), sum(sizes[each] for each in range(shard + 1))),
        shares=Shares(
            settings.balance.shares,
            settings.instruct.depths,
            settings.instruct.false_conditions,
            settings.instruct.unchanged,
        ),
        asking=source.asking,
    )


def intelligent_drafts(
    rows: Sequence[VqaRow], *, seed: int, numbers: Iterable[int], shares: Shares, asking: AskingStyle = "question"
) -> PlannedSource:
    """Drafts with plans of intelligent edits.

    Args:
        rows: Questions about images.
        seed: Decides every choice; the same rows, seed, numbers and shares give the same edits.
        numbers: Numbers of the edits to make, with one plan each.
        shares: Frequencies of the sorts.
        asking: How edits are asked for; if only this differs, edits differ only in their instructions.

    Raises:
        ValueError: If the rows do not suffice for the shares.
    """
    wanted = [name for name, weight in shares.categories.items() if weight]
    pools = {category: _pool(rows, category, seed) for category in wanted}
    endless = {category: _endless(pool) for category, pool in pools.items()}
    for number in numbers:
        plan = shares.draw_plan(python_random(seed, number, "plan"), asking)
        drafts = (_planned(draft_of_row(row), plan, draw) for row, draw in endless[plan.category])
        yield from _until_made(islice(drafts, 2 * len(pools[plan.category])), number)


def plain_drafts(
    rows: Sequence[VqaRow], *, seed: int, size: int, kinds: Mapping[PlainKind, float] | None = None
) -> PlannedSource:
    """Drafts with plans of direct edits ("make the shape red.") of the rows' images, used in turn.

    Args:
        rows: Rows of any split; only their images are used.
        seed: Decides every choice.
        size: Number of edits to make.
        kinds: Weights of `PLAIN_KINDS`; equal by default.

    Raises:
        ValueError: There are no rows, a kind is unknown, or no row gives an edit.
    """
    weights = dict.fromkeys(PLAIN_KINDS, 1.0) if kinds is None else kinds
    check_weights("kinds", weights, PLAIN_KINDS)
    pool = _shuffled(one_row_per_image(rows), seed, "plain")
    endless = _endless(pool)
    for number in range(size):
        plan = PlainEditPlan(_weighted(weights, python_random(seed, number, "kind")))
        drafts = (_planned(draft_of_image(row), plan, draw) for row, draw in endless)
        yield from _until_made(islice(drafts, 2 * len(pool)), number)


def plain_counterparts(rows: Iterable[tuple[int, Mapping[str, Any]]], *, seed: int) -> PlannedSource:
    """For every row of a data set of such edits, drafts of a plain edit of its source, for a control with the same
    images: one kind of edit after another is tried until one succeeds."""
    for number, row in rows:
        draft = draft_of_bytes(row["source_image"]["bytes"], row["id"], row["license"])
        kinds = python_random(seed, row["id"], "kinds").sample(PLAIN_KINDS, len(PLAIN_KINDS))
        for attempt, kind in enumerate(kinds):
            result = yield _at(_planned(draft, PlainEditPlan(kind), row["id"]), (number, attempt))
            if not isinstance(result, Rejection):
                break


# ---- in memory


def intelligent_edits(
    rows: Sequence[VqaRow],
    *,
    seed: int,
    size: int,
    shares: Shares | None = None,
    asking: AskingStyle = "question",
) -> Iterator[Record | Rejection]:
    """`size` intelligent edits, with a progress bar; rejections come in addition. See `intelligent_drafts`."""
    numbers = tqdm(range(size), desc="Intelligent edits", unit="edit", mininterval=0.5)
    return made(intelligent_drafts(rows, seed=seed, numbers=numbers, shares=shares or Shares(), asking=asking), seed)


def plain_edits(
    rows: Sequence[VqaRow], *, seed: int, size: int, kinds: Mapping[PlainKind, float] | None = None
) -> Iterator[Record | Rejection]:
    """`size` plain edits; rejections come in addition. See `plain_drafts`."""
    return made(plain_drafts(rows, seed=seed, size=size, kinds=kinds), seed)


def made(source: PlannedSource, seed: int) -> Iterator[Record | Rejection]:
    """Takes the drafts of a planned source through the stages: the writer, the exact editor and the verifier of
    `uniedit_hf/small_world/rules.py`."""
    seen: set[str] = set()
    result = None
    while True:
        try:
            draft = source.send(result)
        except StopIteration:
            return
        result = draft if isinstance(draft, Rejection) else _edited(draft, seed, seen)
        yield result if isinstance(result, Rejection) else finished(result)


def _edited(draft: Draft, seed: int, seen: set[str]) -> Draft | Rejection:
    written = instruct_by_rules(draft, None, seed)
    if isinstance(written, Rejection):
        return written
    edit_id = record_id(written)
    if edit_id in seen:
        return written.rejected("screen", "duplicate edit", "the same edit was drawn before.")
    seen.add(edit_id)
    return read_back(draw_exactly(written))


# ---- drawing


def _until_made(drafts: Iterator[Draft | Rejection], number: int) -> PlannedSource:
    """Drafts up to the first that becomes an edit; if nothing is sent, the first one counts as made."""
    result, attempt = None, -1
    for attempt, draft in enumerate(drafts):
        result = yield _at(draft, (number, attempt))
        if not isinstance(result, Rejection):
            return
    raise ValueError(
        f"None of {attempt + 1} questions became edit {number}; the last was rejected because {result.reason}."
    )


def _planned(draft: Draft | Rejection, plan: EditPlan | PlainEditPlan, draw: int | str) -> Draft | Rejection:
    return draft if isinstance(draft, Rejection) else draft.with_(plan=plan, draw=draw, category=plan.task_category)


def _at(draft: Draft | Rejection, position: tuple[int, int]) -> Draft | Rejection:
    return replace(draft, position=position) if isinstance(draft, Rejection) else draft.with_(position=position)


def _pool(rows: Sequence[VqaRow], category: Category, seed: int) -> list[VqaRow]:
    """The rows for a category, shuffled: those that ask about it, or one of each image if the question is composed."""
    of_category = category in ("shape", "color")
    pool = [row for row in rows if row.attribute == category] if of_category else one_row_per_image(rows)
    return _shuffled(pool, seed, category)


def _shuffled(rows: Sequence[VqaRow], seed: int, purpose: str) -> list[VqaRow]:
    if not rows:
        raise ValueError(f"There are no rows for {purpose} edits; pass the rows of `load_easy_vqa`.")
    return python_random(seed, purpose, "order").sample(rows, len(rows))


def _endless(rows: Sequence[VqaRow]) -> Iterator[tuple[VqaRow, int]]:
    """Repeats the rows endlessly, with the number of the round."""
    return ((row, draw) for draw in count() for row in rows)


def _weighted(weights: Mapping, rng: random.Random):
    return rng.choices(list(weights), list(weights.values()))[0]
