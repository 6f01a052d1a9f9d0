"""Converts the rows of any source to drafts."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from uniedit_hf.calls.messages import EncodedImage
from uniedit_hf.row_error import RowError
from uniedit_hf.schema import stable_id
from uniedit_hf.small_world.drafts import draft_of_row
from uniedit_hf.small_world.easy_vqa import load_easy_vqa
from uniedit_hf.small_world.edits import planned_drafts
from uniedit_hf.synthesis.records import Draft, Rejection
from uniedit_hf.synthesis.settings import Conversations, EasyVqa, PlainEdits, Rows, Settings
from uniedit_hf.synthesis.sources.conversation_rows import ConversationRows
from uniedit_hf.synthesis.sources.image_files import SourceImages, shard_of
from uniedit_hf.synthesis.sources.question_rows import QuestionRows
from uniedit_hf.synthesis.sources.rows import count_rows, rows_of_files


STAGE = "source"


def drafts_of(settings: Settings, shard: int = 0) -> Generator[Draft | Rejection, Draft | Rejection | None, None]:
    """The drafts of a shard of a run. A source that plans its edits must be sent the result of each draft before it
    yields the next.

    Raises:
        ValueError: If the source as a whole cannot be read.
        OSError: If a file cannot be opened.
    """
    if settings.planned:
        yield from planned_drafts(settings, shard)
    else:
        yield from read_source(settings.source, shard, settings.shards)


def read_source(
    settings: Conversations | Rows | EasyVqa, shard: int = 0, shards: int = 1
) -> Iterator[Draft | Rejection]:
    """The drafts of a shard of a source that is read once, from its first row to its last. All rows about one image
    are in one shard. Raises the same errors as `drafts_of`.
    """
    if isinstance(settings, EasyVqa):
        for number, row in enumerate(load_easy_vqa("train")[: settings.limit]):
            if shard_of(row.image_path.name, shards) == shard:
                yield draft_of_row(row, number)
        return
    understood = ConversationRows(settings) if isinstance(settings, Conversations) else QuestionRows(settings)
    reader = SourceImages(_root(settings), settings.archives, of_dataset=bool(getattr(settings, "dataset", None)))
    for number, row in enumerate(_rows(settings, understood)):
        if number == settings.limit:
            return
        image = _image(understood, row)
        home = number % shards if isinstance(image, RowError) else shard_of(image, shards)
        if home == shard:
            for turn, each in enumerate(_questions(understood, row, image, reader)):
                yield _draft(each, (number, turn))


def count_source(settings: Conversations | Rows | EasyVqa | PlainEdits) -> int | None:
    """The number of rows to read, or None if it is only known after reading all of them."""
    if isinstance(settings, PlainEdits):
        return count_rows(settings.files)
    if isinstance(settings, EasyVqa):
        count = len(load_easy_vqa("train"))
    elif settings.files:
        _root(settings)
        count = count_rows(settings.files)
    else:
        return settings.limit
    return min(count, settings.limit or count)


def _rows(settings: Conversations | Rows, understood: ConversationRows | QuestionRows):
    if not settings.files:
        return understood.rows_of_dataset()
    return rows_of_files(settings.files, getattr(understood, "named", None))


def _root(settings: Conversations | Rows) -> Path:
    if settings.image_root is not None and not settings.image_root.is_dir():
        raise ValueError(f"There is no folder {settings.image_root}: check source.image_root.")
    for file in settings.files:
        if not file.is_file():
            raise ValueError(f"There is no file {file}: check source.files.")
    return settings.image_root or (settings.files[0].parent if settings.files else Path())


def _image(understood: ConversationRows | QuestionRows, row: dict[str, Any] | RowError) -> Any:
    """A row's reference to its image, or the reason why it cannot be used."""
    if isinstance(row, RowError):
        return row
    try:
        return understood.image(row)
    except RowError as error:
        return error


def _questions(
    understood: ConversationRows | QuestionRows, row: dict[str, Any], image: Any, reader: SourceImages
) -> Iterator[tuple[EncodedImage, str, str, dict[str, Any]] | RowError]:
    """Image, question, answer and origin of every question in a row."""
    try:
        if isinstance(image, RowError):
            raise image
        questions, image, origin = understood.questions(row), reader.read(image), understood.origin(row)
    except RowError as error:
        yield error
        return
    for each in questions:
        yield each if isinstance(each, RowError) else (image, *each, origin)


def _draft(found: tuple | RowError, position: tuple[int, int]) -> Draft | Rejection:
    if not isinstance(found, RowError):
        image, question, answer, origin = found
        if question and answer and not _half_characters(question + answer):
            draft_id = stable_id(image.data, question, answer)
            return Draft(position=position, id=draft_id, image=image, question=question, answer=answer, **origin)
        if question and answer:
            found = RowError("not UTF-8", "half of a surrogate pair: expected whole characters.")
        else:
            missing = "answer" if question else "question"
            found = RowError(f"no {missing}", f"the {missing} is empty: expected text.")
    row_id = "row " + ".".join(map(str, position))
    return Rejection(found.reason, row_id, STAGE, found.detail, position=position)


def _half_characters(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)
