"""Recipes: functions from a row of a data set to a `Sample`, which says what the model reads and learns. A new way of
training is a new function here.

    edit_sample         source, instruction, optional thinking -> the target image (the paper's recipe)
    answer_sample       source, question -> the answer
    generate_sample     prompt -> the target image
    interleaved_sample  turns of text and images, with losses on any of them

Rows have the columns of the `uniedit-148k` data set. Packs are planned from rows without their image columns: where an
image column is absent, the segment gets its `(width, height)` from the column `source_size` or `target_size` alone. An
image column that exists but is null is an error. Every error in a row is a `RowError`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from PIL import Image

from uniedit_hf.randomness import python_random
from uniedit_hf.renamed import refuse_former_names
from uniedit_hf.row_error import RowError
from uniedit_hf.segments import (
    DRAWING,
    UNDERSTANDING,
    ImageSegment,
    ImageTokens,
    Sample,
    Segment,
    StoredView,
    TextSegment,
    View,
)


# Stored encodings of images: suffix of the column by view, and all such columns of the data set's schema.
STORED = {UNDERSTANDING: "features", DRAWING: "latents"}
STORED_COLUMNS = tuple(f"{image}_{kind}" for image in ("source", "target") for kind in STORED.values())
# All columns that recipes read; a stream reads no others.
READ_COLUMNS = (
    "id", "prompt", "instruction", "thinking", "question", "answer", "turns", "source_image", "source_size",
    "source_tokens", "target_image", "target_size", "target_tokens", *STORED_COLUMNS,
)  # fmt: skip


@refuse_former_names
@dataclass(frozen=True)
class Conditioning:
    """The condition before an image that the model learns to draw, and how often each part is dropped, as
    classifier-free guidance needs. The defaults are the paper's: only the understanding view of the source is
    shown, so the model has to understand it and cannot copy its pixels.

    Args:
        source_views: `"understanding"`, `"drawing"` or both, in the order in which the model reads them; the
            processor's `make_conditioning` puts them into its family's order.
        text_dropout: Probability of dropping a text.
        understanding_dropout: Probability of dropping the understanding view of a source.
        drawing_dropout: Probability of dropping the clean drawing view of a source.
        full_dropout: Probability of dropping the whole condition, images and texts together.

    Raises:
        ValueError: If a view is unknown, a number is not a probability, or a dropout has no effect.
    """

    FORMER_NAMES = {"vit_dropout": "understanding_dropout", "vae_dropout": "drawing_dropout"}

    source_views: tuple[View, ...] = (UNDERSTANDING,)
    text_dropout: float = 0.1
    understanding_dropout: float = 0.0
    drawing_dropout: float = 0.0
    full_dropout: float = 0.0

    def __post_init__(self):
        views = tuple(self.source_views)
        if not views or not set(views) <= {UNDERSTANDING, DRAWING}:
            raise ValueError(f"source_views={views} must name {UNDERSTANDING!r}, {DRAWING!r} or both.")
        object.__setattr__(self, "source_views", tuple(dict.fromkeys(views)))

        for name in ("text_dropout", "understanding_dropout", "drawing_dropout", "full_dropout"):
            if not 0 <= vars(self)[name] <= 1:
                raise ValueError(f"{name}={vars(self)[name]} is not a probability; choose a number from 0 to 1.")
        for name, view in (("understanding_dropout", UNDERSTANDING), ("drawing_dropout", DRAWING)):
            if vars(self)[name] and view not in views:
                raise ValueError(
                    f"{name}={vars(self)[name]} has no effect with source_views={views}; "
                    f"add {view!r} to source_views or set {name}=0."
                )

    def override(self, **changes) -> Conditioning:
        """A copy with `changes` applied. If `source_views` leaves out a view, its default dropout is reset to 0."""
        if "source_views" in changes:
            for name, view in (("understanding_dropout", UNDERSTANDING), ("drawing_dropout", DRAWING)):
                if view not in changes["source_views"]:
                    changes = {name: 0.0} | changes
        return replace(self, **changes)

    def text(self, text: str) -> TextSegment:
        """A text that the model reads."""
        return TextSegment(text, dropout=self.text_dropout, joint_dropout=self.full_dropout)

    def source(
        self,
        image: Any,
        size: tuple[int, int] | None,
        tokens: ImageTokens | None = None,
        stored: Mapping[View, StoredView] | None = None,
    ) -> tuple[ImageSegment, ...]:
        """The views of an image that the model reads."""
        dropout = {UNDERSTANDING: self.understanding_dropout, DRAWING: self.drawing_dropout}
        return tuple(
            ImageSegment(
                image,
                view,
                dropout=dropout[view],
                size=size,
                joint_dropout=self.full_dropout,
                tokens=tokens if view == DRAWING else None,
                stored=(stored or {}).get(view),
            )
            for view in self.source_views
        )

    def target(
        self,
        image: Any,
        size: tuple[int, int] | None,
        tokens: ImageTokens | None = None,
        stored: Mapping[View, StoredView] | None = None,
    ) -> ImageSegment:
        """An image that the model learns to draw."""
        return ImageSegment(image, DRAWING, loss=True, size=size, tokens=tokens, stored=(stored or {}).get(DRAWING))


PAPER = Conditioning()


def edit_sample(row: Mapping[str, Any], conditioning: Conditioning = PAPER, thinking_loss: bool = False) -> Sample:
    """Source views, `instruction`, then `thinking` if the row has it, and the target with its image loss.

    Args:
        row: Columns `id`, `source_image`, `instruction`, `target_image` and optionally `thinking`, null for none.
        conditioning: Source views and dropouts.
        thinking_loss: Whether the model also learns to write `thinking`. The segments before it are then never
            dropped, because the reasoning depends on them.
    """
    columns = _RowReader.of_row(row)
    image, size = columns.image("source_image", "source_size")
    segments: list[Segment] = [
        *conditioning.source(image, size, columns.tokens("source_tokens"), columns.stored("source"))
    ]
    segments.append(conditioning.text(columns.text("instruction")))
    if row.get("thinking") is not None:
        thinking = conditioning.text(columns.text("thinking"))
        segments.append(replace(thinking, loss=thinking_loss))
    image, size = columns.image("target_image", "target_size")
    segments.append(conditioning.target(image, size, columns.tokens("target_tokens"), columns.stored("target")))
    return Sample(_keep_what_a_text_answers(segments), columns.row_id)


def answer_sample(row: Mapping[str, Any], conditioning: Conditioning = PAPER) -> Sample:
    """The understanding view of the source, `question`, and `answer` with its text loss. Nothing is dropped.

    Args:
        row: Columns `id`, `source_image`, `question` and `answer`.
        conditioning: Not used, because an answer needs its whole question; every recipe has this argument.
    """
    columns = _RowReader.of_row(row)
    image, size = columns.image("source_image", "source_size")
    segments = (
        ImageSegment(image, UNDERSTANDING, size=size, stored=columns.stored("source").get(UNDERSTANDING)),
        TextSegment(columns.text("question")),
        TextSegment(columns.text("answer"), loss=True),
    )
    return Sample(segments, columns.row_id)


def generate_sample(row: Mapping[str, Any], conditioning: Conditioning = PAPER) -> Sample:
    """A prompt and the image to draw from it, with its image loss.

    Args:
        row: Columns `id`, `target_image`, and `prompt`, or `instruction` in a data set without `prompt`.
        conditioning: Only its text and full dropout apply.
    """
    columns = _RowReader.of_row(row)
    prompt = conditioning.text(columns.text("prompt" if "prompt" in row else "instruction"))
    image, size = columns.image("target_image", "target_size")
    target = conditioning.target(image, size, columns.tokens("target_tokens"), columns.stored("target"))
    return Sample((prompt, target), columns.row_id)


def interleaved_sample(row: Mapping[str, Any], conditioning: Conditioning = PAPER) -> Sample:
    """A conversation of texts and images in any order, with text and image losses in one sample.

    Later segments cannot attend to an image that is drawn, since it is noise. So its clean source views follow it,
    unless it is the last turn.

    Args:
        row: Columns `id` and `turns`, a list of turns. A turn has a `role`, `"user"` (read) or `"assistant"`
            (learned), either a `text` or an `image`, with an image optionally its `size`, and optionally `loss`, which
            overrides the role. Null means absent, as in Arrow; only an image whose key is missing is planned from its
            `size`.
        conditioning: Source views and dropouts.
    """
    columns = _RowReader.of_row(row)
    turns = columns.turns("turns")
    segments: list[Segment] = []
    for number, turn in enumerate(turns):
        loss = turn.loss()
        if turn.is_text():
            segments.append(replace(conditioning.text(turn.text("text")), loss=loss))
            continue
        image, size = turn.image("image", "size")
        if loss:
            segments.append(conditioning.target(image, size))
        if not loss or number + 1 < len(turns):
            segments.extend(conditioning.source(image, size))
    if not any(segment.loss for segment in segments):
        reason = "no turn carries a loss; give what the model should learn role 'assistant'."
        raise RowError(reason, row_id=columns.row_id)
    return Sample(_keep_what_a_text_answers(segments), columns.row_id)


def _keep_what_a_text_answers(segments: Sequence[Segment]) -> list[Segment]:
    """Removes the dropout of a text with loss and of everything before it. Dropout is for the guidance of images; a
    model that learns to write an answer must see the question.
    """
    learned = [number for number, segment in enumerate(segments) if isinstance(segment, TextSegment) and segment.loss]
    kept = learned[-1] + 1 if learned else 0
    whole = (replace(segment, dropout=0.0, joint_dropout=0.0) for segment in segments[:kept])
    return [*whole, *segments[kept:]]


def draw_dropout(sample: Sample, seed: int, epoch: int) -> Sample:
    """Decides which segments are dropped, each with its own `dropout` and all together with their `joint_dropout`, as
    a function of (seed, epoch, sample id).

    A segment with loss is never dropped. The processor decides what remains of a dropped segment.
    """
    drops = draw_drops(sample.segments, sample.id, seed, epoch)
    return sample.with_segments([replace(segment, dropped=drop) for segment, drop in zip(sample.segments, drops)])


def draw_drops(segments: Sequence[Segment], sample_id: str, seed: int, epoch: int) -> list[bool]:
    """Only the decisions of `draw_dropout`, one for each segment."""
    random = python_random(seed, epoch, sample_id, "dropout")
    draws = [random.random() for _ in segments]  # one generator each, so that no segment's draw depends on another
    together = random.random()
    return [
        not segment.loss and (draw < segment.dropout or together < segment.joint_dropout)
        for segment, draw in zip(segments, draws)
    ]


class MixedRow(NamedTuple):
    """One row of an epoch of mixed data: the part, the row, and the number of earlier passes over the part. The last
    is used as the epoch in the random draws of the row, so that a repeated row draws new values.
    """

    part: int
    row: int
    epoch: int


def mix(lengths: Sequence[int], weights: Sequence[float], seed: int, epoch: int) -> list[MixedRow]:
    """Chooses the rows of an epoch over several data sets. A part is a data set with its recipe.

    An epoch is one pass over part 0. Another part gives `weight / weights[0]` as many samples, so the weights are the
    shares of samples. Every part is read in passes, each shuffled anew, across the
    boundaries of epochs: no row is repeated before all have been used, and a part larger than its share continues in
    the next epoch. The parts follow one another; `uniedit_hf.packing.plan_packs` shuffles them.

    Args:
        lengths: Number of rows of each part.
        weights: Relative share of samples of each part.
        seed: The mix is a function of it and of the other arguments.
        epoch: From 0.

    Raises:
        ValueError: If a part is empty, or has no weight, or a weight that is not a positive number.
    """
    if not lengths or len(lengths) != len(weights):
        raise ValueError(f"A mix of {len(lengths)} part(s) has {len(weights)} weight(s); give each part one weight.")
    for part, (length, weight) in enumerate(zip(lengths, weights)):
        if length < 1 or not 0 < weight < math.inf:
            raise ValueError(
                f"Part {part} of the mix has {length} rows and weight {weight}; "
                "it needs at least one row and a positive weight, so leave it out or correct it."
            )
    rows: list[MixedRow] = []
    for part, (length, weight) in enumerate(zip(lengths, weights)):
        share = lengths[0] * weight / weights[0]
        start, end = round(epoch * share), round((epoch + 1) * share)
        for times in range(start // length, math.ceil(end / length)):
            order = list(range(length))
            python_random(seed, "mix", part, times).shuffle(order)
            begun = times * length
            rows += [MixedRow(part, row, times) for row in order[max(start - begun, 0) : end - begun]]
    return rows


RECIPES: dict[str, Callable[..., Sample]] = {
    "edit": edit_sample,
    "answer": answer_sample,
    "generate": generate_sample,
    "interleaved": interleaved_sample,
}


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe by its name. Its conditioning is that of the model's processor, overridden by the settings, so the same
    settings work for every family.

    Args:
        name: A key of `RECIPES`.
        overrides: Fields of `Conditioning` that were set.
        options: Further arguments of the recipe.
        conditioning: The effective conditioning; `None` until `for_processor` is called; until then the paper's
            conditioning with the overrides is used.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    conditioning: Conditioning | None = None

    def for_processor(self, processor) -> NamedRecipe:
        """The same recipe with the effective conditioning for a model's processor."""
        return replace(self, conditioning=processor.make_conditioning(**self.overrides))

    def __call__(self, row: Mapping[str, Any]) -> Sample:
        conditioning = self.conditioning or PAPER.override(**self.overrides)
        return RECIPES[self.name](row, conditioning, **self.options)


@dataclass(frozen=True)
class _RowReader:
    """Reads the columns of a row, or the fields of one of its turns; raises `RowError` for anything invalid."""

    fields: Mapping[str, Any]
    row_id: str
    kind: str = "column"

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> _RowReader:
        row_id = cls(row, "").text("id")
        return cls(row, row_id)

    def error(self, name: str, found: str, remedy: str) -> RowError:
        return RowError(f"{self.kind} {name!r} {found}; {remedy}.", row_id=self.row_id)

    def value(self, name: str) -> Any:
        if name not in self.fields:
            raise self.error(name, f"is missing, there are {', '.join(self.fields)}", "rename or add it")
        if self.fields[name] is None:
            raise self.error(name, "is null", "fill it in or leave the row out")
        return self.fields[name]

    def text(self, name: str) -> str:
        value = self.value(name)
        if not isinstance(value, str):
            raise self.error(name, f"holds {type(value).__name__} {value!r:.40}", "expected text")
        if not value.strip():
            raise self.error(name, "is empty", "write some text or leave the row out")
        return value

    def image(self, name: str, size_name: str) -> tuple[Any, tuple[int, int] | None]:
        """The image and its size; one may be `None`: the image if its column is absent, otherwise the size."""
        if name not in self.fields and self.fields.get(size_name) is None:
            there = ", ".join(self.fields)
            raise self.error(name, f"is missing, and so is {size_name!r} to plan with, there are {there}", "add it")
        size = self._size(size_name) if self.fields.get(size_name) is not None else None
        if name not in self.fields:
            return None, size
        image = self.value(name)
        stored = isinstance(image, Mapping)
        if stored and image.get("bytes") is None and image.get("path") is None:
            raise self.error(name, "has neither bytes nor a path", "fill it in or leave the row out")
        if not stored and not isinstance(image, (Image.Image, bytes, str, os.PathLike)):
            raise self.error(name, f"holds {type(image).__name__} {image!r:.40}", "expected an image, bytes or a path")
        return image, size

    def tokens(self, name: str) -> ImageTokens | None:
        """Stored tokens of an image, if the row has some, with the fingerprint in the column `image_tokenizer`."""
        ids = self.fields.get(name)
        if ids is None:
            return None
        if not isinstance(ids, (list, tuple)) or not all(isinstance(each, int) for each in ids):
            raise self.error(name, f"holds {ids!r:.40}", "expected a list of token ids")
        return ImageTokens(tuple(ids), self.text("image_tokenizer"))

    def stored(self, image: str) -> dict[View, StoredView]:
        """Stored encodings of an image, if the row has them, with the fingerprints in `latents_encoder` and
        `features_encoder`."""
        found: dict[View, StoredView] = {}
        for view, kind in STORED.items():
            data = self.fields.get(f"{image}_{kind}")
            if data is not None and not isinstance(data, bytes):
                raise self.error(
                    f"{image}_{kind}", f"holds {data!r:.40}", "expected bytes of `uniedit dataset latents`"
                )
            if data is not None:
                found[view] = StoredView(data, self.text(f"{kind}_encoder"))
        return found

    def _size(self, name: str) -> tuple[int, int]:
        value = self.fields[name]
        pair = tuple(value) if isinstance(value, (list, tuple)) else ()
        if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
            raise self.error(name, f"holds {value!r:.40}", "expected (width, height) in pixels")
        return pair

    def turns(self, name: str) -> list[_RowReader]:
        value = self.value(name)
        if not isinstance(value, (list, tuple)) or not value or not all(isinstance(turn, Mapping) for turn in value):
            raise self.error(name, f"holds {value!r:.40}", "expected a list of turns with role and text or image")
        return [replace(self, fields=turn, kind=f"turn {number}:") for number, turn in enumerate(value)]

    def is_text(self) -> bool:
        if self.fields.get("text") is not None and self.fields.get("image") is not None:
            raise self.error("text", "comes with an 'image'", "make two turns of them")
        return self.fields.get("text") is not None

    def loss(self) -> bool:
        role, loss = self.value("role"), self.fields.get("loss")
        if role not in ("user", "assistant"):
            raise self.error("role", f"is {role!r:.40}", "expected 'user' or 'assistant'")
        if loss is not None and not isinstance(loss, bool):
            raise self.error("loss", f"is {loss!r:.40}", "expected true, false or null")
        return role == "assistant" if loss is None else loss
