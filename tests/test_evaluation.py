"""`uniedit evaluate` from prompts to tables: small models that draw, a judge behind real HTTP, a detector."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.evaluation_parts import GENEVAL, write_benchmarks, write_detector
from tests.judge_server import JudgeServer
from tests.tiny_models import picture, tiny_bagel, tiny_bagel_processor, tiny_janus, tiny_janus_processor
from uniedit_hf import UniEditPipeline, cli
from uniedit_hf.evaluation import running
from uniedit_hf.evaluation.comparison import extremes
from uniedit_hf.evaluation.detector import instances
from uniedit_hf.evaluation.items import Item
from uniedit_hf.evaluation.journal import Journal
from uniedit_hf.evaluation.judge import entry_key, stamp
from uniedit_hf.evaluation.suites import SUITES, suite as suite_of


FAST = json.dumps({"num_timesteps": 3, "size": [32, 32], "thinking_budget": 0})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A "tuned" and a "base" model of other weights, and GenEval's detector with its names."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("tuned", "base")):
        tiny_bagel(seed).save_pretrained(folder / name)
        tiny_bagel_processor().save_pretrained(folder / name)
    (folder / "tuned" / "README.md").write_text("# Tuned\n")
    write_detector(folder)
    return folder


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    write_benchmarks(folder)
    return folder


def evaluate(
    name: str, models: Path, benchmarks: Path, output: Path, server: JudgeServer | None = None, *flags
) -> int:
    prompts = benchmarks / ("gedit" if name == "gedit" else f"{name}.json")
    command = ["evaluate", "--suite", name, "--prompts", prompts, "--images", benchmarks, "--model", models / "tuned",
               "--baseline", models / "base", "--drawing", FAST, "--output_dir", output]  # fmt: skip
    if server:
        command += ["--judge_model", "judge", "--judge_base_url", server.address, "--judge_api_key_env", "none"]
    if name == "geneval":
        command += ["--detector_size", "64"]
        command += [
            "--detector",
            models / "detector",
            "--clip",
            models / "clip",
            "--class_names",
            models / "names.txt",
        ]
    return cli.main([str(word) for word in [*command, *flags]])


@pytest.mark.parametrize("name", [name for name in SUITES if name not in ("geneval", "small_world")])
def test_a_judged_suite_runs_whole_and_again_without_a_call(name, models, benchmarks, tmp_path):
    with JudgeServer() as server:
        assert evaluate(name, models, benchmarks, tmp_path, server) == 0
        calls = server.answered.total()
        first = (tmp_path / "result.json").read_bytes()
        assert evaluate(name, models, benchmarks, tmp_path, server) == 0
    assert calls == server.answered.total() > 0 and (tmp_path / "result.json").read_bytes() == first
    result = json.loads(first)
    assert result["runs"]["tuned"]["statuses"] == {"ok": result["items"]}
    assert result["paired"]["items"] == result["items"] >= 2 and result["judge"]["model"] == "judge"
    assert result["runs"]["baseline"]["summary"][result["headline"]] is not None
    replies = [json.loads(line) for line in (tmp_path / "tuned" / "replies.jsonl").read_text().splitlines()]
    assert {reply["model"] for reply in replies} == {"judge-dated"}
    assert all(reply["reply"] and reply["prompt"] and reply["settings"]["temperature"] == 0 for reply in replies)
    page = (tmp_path / "result.html").read_text()
    figures = len(suite_of(name).read(str(prompts_of(benchmarks, name)), str(benchmarks))[0].sources[:1]) + 2
    assert page.count("<img") == figures * sum(map(len, extremes(result)))
    card = (models / "tuned" / "README.md").read_text()
    assert card.startswith("# Tuned") and card.count(f"### Evaluation: {name}") == 1


def prompts_of(benchmarks: Path, name: str) -> Path:
    return benchmarks / ("gedit" if name == "gedit" else f"{name}.json")


def test_geneval_runs_whole(models, benchmarks, tmp_path, capsys):
    assert evaluate("geneval", models, benchmarks, tmp_path) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["runs"]["tuned"]["summary"]) == {
        "single_object", "two_object", "counting", "colors", "position", "color_attr", "overall", "images", "prompts",
    }  # fmt: skip
    assert result["items"] == 6
    assert len(list((tmp_path / "tuned" / "images").glob("*/*.png"))) == 6
    said, note = (
        capsys.readouterr().out,
        "The official protocol draws 4 images per prompt (--seeds 0 1 2 3); this run draws 1.",
    )
    assert "| overall |" in said and note in said and note in (tmp_path / "result.html").read_text()


# ---- models


@pytest.mark.parametrize("name", ["wise", "imgedit"])
def test_janus_is_drawn_judged_and_compared(name, models, benchmarks, tmp_path):
    for seed, role in enumerate(("tuned", "base")):
        tiny_janus(seed).save_pretrained(tmp_path / role)
        tiny_janus_processor().save_pretrained(tmp_path / role)
    with JudgeServer() as server:
        flags = ("--preset", "model", "--drawing", "{}")
        assert evaluate(name, tmp_path, benchmarks, tmp_path / "out", server, *flags) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["drawing"] == {} and result["runs"]["tuned"]["statuses"] == {"ok": result["items"]}
    tuned, base = ([path.read_bytes() for path in sorted((tmp_path / "out" / each).rglob("*.png"))]
                   for each in ("tuned", "baseline"))  # fmt: skip
    assert len(tuned) == len(base) == result["items"] and tuned != base
    assert (tmp_path / "tuned" / "README.md").read_text().startswith(f"<!-- uniedit evaluate: {name} begin -->")


@pytest.mark.parametrize("name", ["wise", "rise"])
def test_the_model_thinks_first_where_the_releases_do(name, models, benchmarks, tmp_path):
    suite = suite_of(name)
    assert all(each["thinking_budget"] == 2048 for each in suite.SETTINGS.values())
    drawing = json.loads(FAST) | {"thinking_budget": 5}
    with JudgeServer() as server:
        flags = ("--preset", "uniedit", "--drawing", json.dumps(drawing), "--limit", "1")
        assert evaluate(name, models, benchmarks, tmp_path, server, *flags) == 0
    (item,) = suite.read(str(prompts_of(benchmarks, name)), str(benchmarks))[:1]
    path = running.picture_path(tmp_path / "tuned", item, 0)
    pipeline = UniEditPipeline.from_pretrained(models / "tuned")
    settings = suite.SETTINGS["uniedit"] | drawing | {"size": (32, 32), "seed": 0}
    source = item.sources[0]() if item.sources else None
    assert path.with_suffix(".txt").read_text() == pipeline.think(source, item.prompt, max_new_tokens=5) != ""

    def drawn(**changes):
        options = settings | changes
        return pipeline.edit(source, item.prompt, **options) if source else pipeline.generate(item.prompt, **options)

    assert drawn().tobytes() == Image.open(path).tobytes() != drawn(thinking_budget=0).tobytes()


# ---- a judge that fails


@pytest.mark.parametrize(
    "fault, status",
    [("garbled", "parse_error"), ("refused", "refused"), ("500", "no_reply"), ("bad_json", "no_reply"),
     ("cut", "no_reply"), ("silent", "no_reply")],
)  # fmt: skip
def test_what_befalls_a_call_is_a_status(fault, status, drawn):
    with JudgeServer(fault) as server:
        outcomes = judge(drawn, server, timeout=0.3)
    assert {outcome.status for outcome in outcomes.values()} == {status}
    assert all(outcome.value is None and outcome.reason for outcome in outcomes.values())


@pytest.mark.parametrize("fault", ["500", "bad_json", "cut", "late"])
def test_what_passes_is_tried_again(fault, drawn):
    with JudgeServer(fault, first_only=True) as server:
        outcomes = judge(drawn, server, timeout=5 if fault == "late" else 0.5)
    assert {outcome.status for outcome in outcomes.values()} == {"ok"}


def test_only_what_failed_is_asked_again(drawn):
    with JudgeServer("500", share=0.5) as server:
        judge(drawn, server)
        done = server.answered.total()
        server.fault = ""
        outcomes = judge(drawn, server)
    assert 0 < done < 8 and set(server.answered.values()) == {1} and server.answered.total() == 8
    assert {outcome.status for outcome in outcomes.values()} == {"ok"}


@pytest.mark.parametrize("fault, said", [("401", "refuses the key"), ("html", "answers with HTML")])
def test_what_befalls_every_call_is_one_sentence(fault, said, models, benchmarks, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    with JudgeServer(fault) as server:
        flags = ("--judge_api_key_env", "JUDGE_KEY", "--limit", "1")
        assert evaluate("wise", models, benchmarks, tmp_path, server, *flags) == 1
        assert server.keys == {"Bearer sk-secret"}
    error = capsys.readouterr().err.splitlines()[-1]
    assert said in error and "sk-secret" not in error
    assert not any("sk-secret" in file.read_text() for file in tmp_path.glob("*/*.json*"))


@pytest.fixture
def drawn(benchmarks, tmp_path):
    """A run of WISE with two seeds whose images are there."""
    items, folder = suite_of("wise").read(str(benchmarks / "wise.json"))[:4], tmp_path / "run"
    for index, item in enumerate(items):
        for seed in (0, 1):
            path = running.picture_path(folder, item, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(32, 32, seed=10 * index + seed).save(path)
    return items, folder


def judge(drawn, server, seeds=(0, 1), **options):
    from uniedit_hf.evaluation.judge import Judge, JudgeSettings

    items, folder = drawn
    settings = JudgeSettings("judge", server.address, None, attempts=2, workers=2, **options)
    return running.judge(suite_of("wise"), Judge(settings), items, seeds, folder, {})


def test_a_killed_run_repeats_no_finished_call(drawn, benchmarks, tmp_path):
    items, folder = drawn
    program = (
        "import sys; from pathlib import Path; from uniedit_hf.evaluation import running; "
        "from uniedit_hf.evaluation.judge import Judge, JudgeSettings; "
        "from uniedit_hf.evaluation.suites import suite; "
        "wise = suite('wise'); settings = JudgeSettings('judge', sys.argv[1], None, attempts=2, workers=2); "
        "running.judge(wise, Judge(settings), wise.read(sys.argv[2])[:4], (0, 1), Path(sys.argv[3]), {})"
    )
    with JudgeServer(seconds=0.3) as server:
        words = [sys.executable, "-c", program, server.address, str(benchmarks / "wise.json"), str(folder)]
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        replies, deadline = folder / "replies.jsonl", time.monotonic() + 60
        while not (replies.exists() and replies.read_bytes().count(b"\n") >= 3) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with open(replies, "ab") as file:
            file.write(b'{"key": "half a li')  # as a line that was being written
        finished = replies.read_bytes().count(b"\n")
        before = server.answered.copy()
        server.seconds = 0.0
        outcomes = judge(drawn, server)
    assert 3 <= finished < 8
    assert server.answered.total() - before.total() == 8 - finished
    assert sum(server.answered.values()) - len(server.answered) <= 2  # those in flight when it was killed
    with JudgeServer() as other:
        fresh = tmp_path / "fresh"
        (folder / "images").rename(fresh.with_name("images"))
        fresh.mkdir()
        fresh.with_name("images").rename(fresh / "images")
        assert judge((items, fresh), other) == outcomes


def test_a_thousand_stored_replies_are_scored_in_seconds(tmp_path, monkeypatch):
    """A whole run of WISE: no image is opened again, no call is made."""
    rows = [{"Prompt": "p", "Explanation": "e", "Subcategory": "", "prompt_id": number} for number in range(1, 1001)]
    (tmp_path / "wise.json").write_text(json.dumps(rows))
    suite, folder = suite_of("wise"), tmp_path / "run"
    items = suite.read(str(tmp_path / "wise.json"))
    for item in items:
        path = running.picture_path(folder, item, 0)
        path.parent.mkdir(parents=True)
        picture(16, 16, seed=int(item.name)).save(path)
    with JudgeServer() as server:
        judge((items[:1], folder), server, seeds=(0,))
    replies = folder / "replies.jsonl"
    stored = json.loads(replies.read_text())  # the others are stored as this one
    entries = [stored | {"key": entry_key(f"{item.name}/0", "wise"), "prompt": question_of(item).text,
                         "picture": stamp(running.picture_path(folder, item, 0))} for item in items]  # fmt: skip
    replies.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    opened = []
    monkeypatch.setattr(running, "open_image", opened.append)
    start = time.perf_counter()
    outcomes = judge((items, folder), server, seeds=(0,))  # the server is gone
    summary = suite.summary([(item, outcomes[item.name, 0]) for item in items])
    assert time.perf_counter() - start < 5 and not opened
    assert len(outcomes) == 1000 and {outcome.status for outcome in outcomes.values()} == {"ok"}
    assert summary["culture"] == summary["biology"] == pytest.approx(outcomes["0001", 0].value)


def question_of(item):
    return suite_of("wise").questions(item, None, {})[0]


def test_folders_have_plain_names_and_those_of_older_runs_stay(tmp_path):
    item = Item("easy-vqa 12 is there a circle?", "", {})
    assert running.picture_path(tmp_path, item, 3) == tmp_path / "images" / "easy-vqa_12_is_there_a_circle" / "3.png"
    older = tmp_path / "images" / item.name
    older.mkdir(parents=True)
    assert running.picture_path(tmp_path, item, 3) == older / "3.png"
    for plain in ("0001", "t_1", "rule-based_reasoning-3", "a.b"):
        assert running.picture_path(tmp_path, Item(plain, "", {}), 0).parent.name == plain


def test_another_picture_is_judged_again(drawn):
    items, folder = drawn
    path = running.picture_path(folder, items[0], 0)
    with JudgeServer() as server:
        judge(drawn, server)
        os.utime(path, (0, 0))
        judge(drawn, server)
        assert server.answered.total() == 8  # only its time differs
        picture(32, 32, seed=99).save(path)
        judge(drawn, server)
        assert server.answered.total() == 9


# ---- runs


def test_drawing_goes_on_and_holds_one_batch(tmp_path, benchmarks):
    class Counting:  # stands for any pipeline; how many images are asked for at once is what is looked at
        batch_size, asked = 2, []

        def edit(self, images, prompts, seed, **settings):
            self.asked.append(len(images))
            if len(self.asked) == 2:
                raise KeyboardInterrupt
            return [picture(32, 32, each) for each in seed]

    items = suite_of("kris").read(str(benchmarks / "kris.json"), str(benchmarks))
    pipeline = Counting()
    with pytest.raises(KeyboardInterrupt):
        running.draw(pipeline, items, (0, 1, 2), tmp_path, {})
    assert running.draw(pipeline, items, (0, 1, 2), tmp_path, {}) == 4
    assert running.draw(pipeline, items, (0, 1, 2), tmp_path, {}) == 0
    assert pipeline.asked == [2, 2, 2, 2] and not list(tmp_path.rglob("*.part"))


def test_processes_share_the_pictures_out(tmp_path, benchmarks):
    class Recording:
        batch_size = 8

        def generate(self, prompts, seed, **settings):
            return [picture(16, 16) for _ in prompts]

    items = suite_of("wise").read(str(benchmarks / "wise.json"))[:4]
    drawn = [running.draw(Recording(), items, (0,), tmp_path / str(rank), {}, rank, 3) for rank in range(3)]
    assert drawn == [2, 1, 1]
    assert len({path.relative_to(path.parents[3]).parts[2] for path in tmp_path.rglob("*.png")}) == 4


def test_boxes_are_read_from_masks_in_the_pictures_size():
    masks = torch.full((2, 8, 8), -9.0)
    masks[0, 2:4, 0:2] = 9.0  # of an image of 64 x 32 pixels, shown at half size in the upper half of the input
    classes = torch.tensor([[0.0, 6.0, 0.0], [6.0, 0.0, 0.0]])
    valid = torch.zeros(32, 32)
    valid[:16] = 1
    found = instances(classes, masks, (64, 32), (32, 32), valid, ["cat", "dog"])
    best = found["dog"][0]
    left, top, right, bottom = best.box
    assert (left, right) == (0, pytest.approx(16, abs=2)) and (top, bottom) == (
        pytest.approx(16, abs=2), pytest.approx(32, abs=2))  # fmt: skip
    assert best.mask.shape == (32, 64) and 0.9 < best.score < 1
    assert all(each.box == best.box for each in found["cat"])  # the second query's mask is empty


# ---- bad input


def test_mistakes_are_one_sentence(models, benchmarks, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def complaint(name, *flags) -> str:
        assert evaluate(name, models, benchmarks, tmp_path / "run", None, *flags) == 1
        *before, error = capsys.readouterr().err.strip().splitlines()
        assert error.startswith("uniedit evaluate: ") and all("drawing:" in line for line in before)
        return error

    with JudgeServer() as server:
        local = ("--judge_model", "judge", "--judge_base_url", server.address, "--judge_api_key_env", "none")
        assert "Row 1 of" in complaint("wise", *local, "--prompts", benchmarks / "rise.json")
        assert "is not JSON" in complaint("wise", *local, "--prompts", benchmarks / "a.png")
        assert "no prompt file" in complaint("wise", *local, "--prompts", benchmarks / "none.json")
        assert "not in" in complaint("imgedit", *local, "--images", tmp_path)
        assert "environment variable OPENAI_API_KEY" in complaint("wise", "--judge_model", "judge")
        assert "give its id as judge_model" in complaint("wise")
        assert "cannot be scored as upstream" in complaint("wise", *local, "--compat", "upstream")
        (tmp_path / "two.txt").write_text("cat\ndog\n")
        assert "5 classes" in complaint("geneval", "--class_names", tmp_path / "two.txt")
        assert "must be JSON such as" in complaint("wise", *local, "--drawing", "{steps}")
        assert "limit is 0" in complaint("wise", *local, "--limit", "0")
        assert not (tmp_path / "run").exists()
        assert "no setting steps" in complaint("wise", *local, "--limit", "1", "--drawing", '{"steps": 3}')
        assert evaluate("wise", models, benchmarks, tmp_path / "run", server, "--limit", "1") == 0  # nothing was drawn
        capsys.readouterr()
        assert "contains a run with other settings (seeds" in complaint("wise", *local, "--limit", "1", "--seeds", "4")


def test_a_detector_needs_its_classes(benchmarks, models, tmp_path, capsys):
    command = ["evaluate", "--suite", "geneval", "--prompts", str(GENEVAL), "--model", str(models / "tuned")]
    assert cli.main([*command, "--output_dir", str(tmp_path)]) == 1
    assert "needs its classes" in capsys.readouterr().err


def test_other_settings_are_not_compared(tmp_path, drawn, benchmarks):
    from uniedit_hf.evaluation.comparison import check_same

    items, _ = drawn
    one = running.settings_of("wise", items, "a", [0], {"num_timesteps": 3})
    other = running.settings_of("wise", items, "b", [0], {"num_timesteps": 4})
    running.open_run(tmp_path / "a", one)
    running.open_run(tmp_path / "b", other)
    running.picture_path(tmp_path / "a", items[0], 0).parent.mkdir(parents=True)
    running.picture_path(tmp_path / "a", items[0], 0).touch()
    with pytest.raises(ValueError, match="cannot be compared: drawing"):
        check_same(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ValueError, match="contains a run with other settings"):
        running.open_run(tmp_path / "a", one | {"seeds": [1]})
    check_same(tmp_path / "a", tmp_path / "a")


def test_missing_pictures_are_told(drawn):
    items, folder = drawn
    running.picture_path(folder, items[1], 1).unlink()
    with pytest.raises(ValueError, match="1 of 8 images are missing, .*0401/1.png first"):
        running.check_pictures(items, (0, 1), folder)


def test_a_damaged_journal_names_its_line(tmp_path):
    (tmp_path / "replies.jsonl").write_text('{"key": "a"}\nno\n{"key": "b"}\n')
    with pytest.raises(ValueError, match="Line 2 of"):
        Journal(tmp_path / "replies.jsonl")
