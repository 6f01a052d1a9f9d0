"""Every source gives the same drafts in the same order, and bad rows are rejections that say what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image as ImageFeature, Value
from hub import running_hub
from hypothesis import given, strategies as st
from PIL import Image

from uniedit_hf.calls.messages import encoded
from uniedit_hf.row_error import RowError
from uniedit_hf.schema import TASK_CATEGORIES, stable_id
from uniedit_hf.small_world.easy_vqa import load_easy_vqa
from uniedit_hf.synthesis.records import Draft, Rejection
from uniedit_hf.synthesis.settings import Conversations, EasyVqa, Rows
from uniedit_hf.synthesis.sources.conversation_rows import turns
from uniedit_hf.synthesis.sources.reading import count_source, read_source


def png(color: str) -> bytes:
    return encoded(Image.new("RGB", (12, 8), color))


def write_lines(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(settings):
    return list(read_source(settings))


@pytest.fixture
def folder(tmp_path):
    for color in ("red", "blue"):
        (tmp_path / f"{color}.png").write_bytes(png(color))
    return tmp_path


def test_a_conversation_gives_a_draft_for_every_turn(folder):
    row = {
        "images": ["red.png"],
        "messages": [
            {"content": "<|img_start|>x<|img_end|>\nwhat color?"}, {"content": "red"},
            {"content": "how many?"}, {"content": "one"},
        ],
        "subject": "CLEVR",
    }  # fmt: skip
    roles = {"images": ["blue.png"], "messages": [{"role": "system", "content": "be brief"},
             {"role": "user", "content": "<image>\nand this?"}, {"role": "assistant", "content": "blue"}]}  # fmt: skip
    settings = Conversations(kind="conversations", files=[write_lines(folder / "a.jsonl", row, roles)], license="MIT")
    drafts = read(settings)
    assert [(d.question, d.answer, d.source, d.license, d.position) for d in drafts] == [
        ("what color?", "red", "CLEVR", "MIT", (0, 0)),
        ("how many?", "one", "CLEVR", "MIT", (0, 1)),
        ("and this?", "blue", "a", "MIT", (1, 0)),
    ]
    assert drafts[0].id == stable_id(png("red"), "what color?", "red")
    assert count_source(settings) == 2


def test_rows_of_jsonl_parquet_and_data_sets_give_the_same(folder):
    rows = [
        {"picture": f"{color}.png", "q": f"is it {color}?", "a": "yes", "kind": "color"} for color in ("red", "blue")
    ]
    columns = {"image": "picture", "question": "q", "answer": "a", "category": "kind"}
    jsonl = Rows(kind="rows", files=[write_lines(folder / "rows.jsonl", *rows)], columns=columns)
    with_bytes = [row | {"picture": {"bytes": png(row["picture"][:-4]), "path": None}} for row in rows]
    pq.write_table(pa.Table.from_pylist(with_bytes), folder / "rows.parquet")
    parquet = Rows(kind="rows", files=[folder / "rows.parquet"], columns=columns)
    features = Features({"picture": ImageFeature(), "q": Value("string"), "a": Value("string"),
                         "kind": ClassLabel(names=list(TASK_CATEGORIES))})  # fmt: skip
    (folder / "hub").mkdir()
    Dataset.from_list(with_bytes, features=features).to_parquet(folder / "hub" / "train.parquet")
    dataset = Rows(kind="rows", dataset=str(folder / "hub"), columns=columns)
    results = [read(settings) for settings in (jsonl, parquet, dataset)]
    for drafts in results:
        assert [d.id for d in drafts] == [d.id for d in results[0]]
        assert [(d.question, d.category) for d in drafts] == [("is it red?", "color"), ("is it blue?", "color")]
    assert [count_source(settings) for settings in (jsonl, parquet, dataset)] == [2, 2, None]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_pictures_are_read_from_archives(folder, kind):
    if kind == "tar":
        with tarfile.open(folder / "a.tar", "w") as archive:
            archive.add(folder / "red.png", "in/side.png")
    else:
        with zipfile.ZipFile(folder / "a.zip", "w") as archive:
            archive.write(folder / "red.png", "in/side.png")
    lines = write_lines(folder / "rows.jsonl", {"image": "in/side.png", "question": "what?", "answer": "red"})
    drafts = read(Rows(kind="rows", files=[lines], archives=[folder / f"a.{kind}"]))
    assert [draft.image.data for draft in drafts] == [png("red")]


ON_THE_HUB = """
import sys
from huggingface_hub import HfApi
from uniedit_hf.synthesis.settings import Rows
from uniedit_hf.synthesis.sources.reading import read_source

HfApi().create_repo("uniedit-hf/signs", repo_type="dataset")
HfApi().upload_folder(repo_id="uniedit-hf/signs", repo_type="dataset", folder_path=sys.argv[1])
columns = {"question": "asked", "answer": "said"}
for draft in read_source(Rows(kind="rows", dataset="uniedit-hf/signs", columns=columns)):
    print(draft.question, draft.answer, draft.image.sha256)
"""


def test_a_data_set_of_the_hub_may_keep_its_pictures_as_files(tmp_path):
    (tmp_path / "signs").mkdir()
    (tmp_path / "signs" / "red.png").write_bytes(png("red"))
    (tmp_path / "signs" / "metadata.jsonl").write_text('{"file_name": "red.png", "asked": "q?", "said": "red"}')
    with running_hub(tmp_path / "hub") as hub:
        environment = os.environ | hub.environment | {"HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", ON_THE_HUB, str(tmp_path / "signs")]
        found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.stdout.split() == ["q?", "red", hashlib.sha256(png("red")).hexdigest()], found.stderr


def test_easy_vqa_is_a_source():
    drafts = read(EasyVqa(kind="easy_vqa", limit=20))
    rows = load_easy_vqa("train")[:20]
    assert [(d.question, d.answer, d.license) for d in drafts] == [(r.question, r.answer, "MIT") for r in rows]
    assert drafts[3].id == stable_id(rows[3].image_path.read_bytes(), rows[3].question, rows[3].answer)


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_shards_share_out_every_row_and_keep_pictures_together(shards):
    settings = EasyVqa(kind="easy_vqa", limit=60)
    parts = [list(read_source(settings, shard, shards)) for shard in range(shards)]
    together = sorted((draft for part in parts for draft in part), key=lambda draft: draft.position)
    assert [draft.id for draft in together] == [draft.id for draft in read(settings)]
    pictures = [{draft.image.sha256 for draft in part} for part in parts]
    assert sum(map(len, pictures)) == len(set().union(*pictures))


def bomb() -> bytes:
    """A PNG of a few hundred bytes that claims 50,000 x 50,000 pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


BAD = {
    "no JSON": "{not json",
    "no JSON object": "[1, 2]",
    "not exactly one image": {"images": [], "messages": [{"content": "a?"}, {"content": "b"}]},
    "image not found": {"images": ["none.png"], "messages": [{"content": "a?"}, {"content": "b"}]},
    "path with '..'": {"images": ["../red.png"], "messages": [{"content": "a?"}, {"content": "b"}]},
    "image is a URL": {"images": ["https://x.org/a.png"], "messages": [{"content": "a?"}, {"content": "b"}]},
    "question without an answer": {"images": ["red.png"], "messages": [{"content": "a?"}]},
    "answer without a question": {"images": ["red.png"], "messages": [{"role": "assistant", "content": "a"}]},
    "no conversation": {"images": ["red.png"], "messages": "none"},
    "no question": {"images": ["red.png"], "messages": [{"content": "<image>"}, {"content": "b"}]},
    "no answer": {"images": ["red.png"], "messages": [{"content": "a?"}, {"content": " "}]},
    "not UTF-8": '{"images": ["red.png"], "messages": [{"content": "a\\ud800?"}, {"content": "b"}]}',
    "too many bytes": {"images": ["big.png"], "messages": [{"content": "a?"}, {"content": "b"}]},
}


def test_bad_rows_are_rejected_and_the_rest_goes_on(folder):
    with (
        zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("big.png", "w") as big,
    ):
        for _ in range(300):
            big.write(bytes(2**20))
    assert (folder / "bomb.zip").stat().st_size < 10 * 2**20
    good = {"images": ["red.png"], "messages": [{"content": "good?"}, {"content": "yes"}]}
    lines = [row for bad in BAD.values() for row in (bad, good)]
    settings = Conversations(
        kind="conversations", files=[write_lines(folder / "a.jsonl", *lines)], archives=[folder / "bomb.zip"]
    )
    results = read(settings)
    assert [isinstance(result, Draft) for result in results] == [False, True] * len(BAD)
    rejections = [result for result in results if isinstance(result, Rejection)]
    assert [rejection.reason for rejection in rejections] == list(BAD)
    for number, rejection in enumerate(rejections):
        assert rejection.detail and rejection.position == (2 * number, 0) and rejection.stage == "source"


def test_a_broken_line_does_not_end_a_file(folder):
    path = folder / "rows.jsonl"
    good = json.dumps({"image": "red.png", "question": "what?", "answer": "red"}).encode()
    path.write_bytes(b"\xff\xfe broken\n" + good + b"\n\n" + b"x" * (16 * 2**20 + 10) + b"\n" + good)
    results = read(Rows(kind="rows", files=[path]))
    assert [getattr(each, "reason", "good") for each in results] == ["no JSON", "good", "line too long", "good"]


def test_what_cannot_be_read_at_all_is_one_sentence(folder):
    lines = write_lines(folder / "rows.jsonl", {"image": "red.png"})
    (folder / "broken.parquet").write_bytes(b"PAR1 no")
    pq.write_table(pa.table({"q": ["a?"]}), folder / "other.parquet")
    for settings, message in (
        (Rows(kind="rows", files=[folder / "none.jsonl"]), "There is no file .*none.jsonl"),
        (Rows(kind="rows", files=[folder / "red.png"]), "neither .jsonl nor .parquet"),
        (Rows(kind="rows", files=[folder / "broken.parquet"]), "cannot be read as Parquet"),
        (Rows(kind="rows", files=[folder / "other.parquet"]), "has no column 'image' but q"),
        (Rows(kind="rows", files=[lines], image_root=folder / "none"), "There is no folder .*none"),
        (Rows(kind="rows", files=[lines], archives=[folder / "none.tar"]), "There is no archive .*none.tar"),
        (Rows(kind="rows", files=[lines], archives=[folder / "red.png"]), "red.png cannot be read as tar"),
        (Rows(kind="rows", dataset=str(folder / "none")), "none' .train. cannot be loaded .*check source"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read(settings)


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text(min_size=1, max_size=5))))
def test_no_message_of_a_conversation_is_lost(messages):
    row = {"messages": [{"role": role, "content": f"{role} {text}"} for role, text in messages]}
    found = list(turns(row))
    pairs = [each for each in found if not isinstance(each, RowError)]
    spoken = [role for role, _ in messages if role != "system"]
    assert len(pairs) == sum(a == "user" and b == "assistant" for a, b in zip(spoken, spoken[1:]))
    lonely = len(spoken) - 2 * len(pairs)
    assert len(found) - len(pairs) == lonely + (not spoken)


def test_a_picture_that_claims_to_be_huge_is_rejected_where_it_is_looked_at(folder):
    import asyncio

    from uniedit_hf.synthesis.stages.inspection import ImageInspection

    (folder / "bomb.png").write_bytes(bomb())
    (folder / "cut.png").write_bytes(png("red")[:45])
    lines = write_lines(folder / "rows.jsonl", *({"image": f"{name}.png", "question": "a?", "answer": "b"}
                                                 for name in ("bomb", "cut", "red")))  # fmt: skip
    look = ImageInspection([], near=True)
    results = [asyncio.run(look(draft)) for draft in read(Rows(kind="rows", files=[lines]))]
    assert [getattr(result, "reason", "good") for result in results] == ["unusable image"] * 2 + ["good"]
    assert "larger than the limit" in results[0].detail and "save it again" in results[1].detail
