"""A judge that fails: what the command says, writes and leaves alone, and what the same command then asks."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.evaluation_parts import write_benchmarks
from tests.judge_server import DRESSES, JudgeServer
from tests.tiny_models import picture, tiny_bagel, tiny_bagel_processor
from uniedit_hf import cli
from uniedit_hf.calls.caller import Caller
from uniedit_hf.calls.messages import PassingFailure
from uniedit_hf.evaluation import running
from uniedit_hf.evaluation.comparison import compare
from uniedit_hf.evaluation.items import Item
from uniedit_hf.evaluation.judge import Judge, JudgeSettings
from uniedit_hf.evaluation.result_card import SHIPPED, why_not_written
from uniedit_hf.evaluation.suites import suite as suite_of


FAST = json.dumps({"num_timesteps": 2, "size": [32, 32], "thinking_budget": 0})


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    tiny_bagel().save_pretrained(folder / "tuned")
    tiny_bagel_processor().save_pretrained(folder / "tuned")
    write_benchmarks(folder)
    return folder


@pytest.fixture
def run(parts, tmp_path, capsys):
    """Runs the command and returns its exit code, what it printed and what it complained about."""
    (parts / "tuned" / "README.md").write_text("# Tuned\n")

    def run(server: JudgeServer, *flags, name: str = "wise") -> tuple[int, str, str]:
        prompts = parts / ("gedit" if name == "gedit" else f"{name}.json")
        words = ["evaluate", "--suite", name, "--prompts", prompts, "--images", parts, "--model", parts / "tuned",
                 "--drawing", FAST, "--output_dir", tmp_path / "out", "--judge_model", "judge", "--judge_base_url",
                 server.address, "--judge_api_key_env", "none", "--judge_attempts", 2, "--judge_workers", 2,
                 "--judge_timeout", 1, *flags]  # fmt: skip
        code = cli.main([str(word) for word in words])
        said = capsys.readouterr()
        complaints = [line for line in said.err.splitlines() if line.startswith("uniedit evaluate: ")]
        return code, said.out, complaints[-1] if complaints else ""

    return run


@pytest.fixture
def card(parts):
    return lambda: (parts / "tuned" / "README.md").read_text()


def result(tmp_path: Path, name: str = "result") -> dict:
    return json.loads((tmp_path / "out" / f"{name}.json").read_text())


# ---- calls that fail


@pytest.mark.parametrize("fault, reason", [("500", "HTTP 500: oops"), ("429", "HTTP 429"), ("silent", "no reply in")])
def test_a_judge_that_is_down_is_told_and_asked_again(fault, reason, run, card, tmp_path):
    with JudgeServer(fault) as server:
        code, said, complaint = run(server)
        assert code == 1 and "run the same command again" in complaint and reason in complaint
        assert reason in said and "6 no_reply" in said and card() == "# Tuned\n" and "card is unchanged" in said
        assert result(tmp_path)["runs"]["tuned"]["statuses"] == {"no_reply": 6}
        assert any(reason in each["reason"] for each in result(tmp_path)["runs"]["tuned"]["reasons"])
        assert server.tried.total() <= 5 * 2  # it stops when calls fail in a row
        drawn = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
        server.fault = ""
        code, said, complaint = run(server)
        assert (code, complaint) == (0, "") and server.answered.total() == 6
    assert result(tmp_path)["runs"]["tuned"]["statuses"] == {"ok": 6} and "| overall_mean | 0." in card()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == drawn


def test_only_some_calls_fail(run, card, tmp_path):
    with JudgeServer("500", share=0.6) as server:
        code, said, complaint = run(server, "--judge_workers", "6")
        done = server.answered.total()
        assert code == 1 and 0 < done < 6 and f"{6 - done} images have no reply" in complaint and card() == "# Tuned\n"
        server.fault = ""
        assert run(server)[0] == 0 and server.answered.total() == 6 and set(server.answered.values()) == {1}


def test_less_does_not_overwrite_more(run, card, tmp_path):
    with JudgeServer() as server:
        assert run(server)[0] == 0
        whole, table = (tmp_path / "out" / "result.json").read_bytes(), card()
        server.fault = "500"
        code, said, complaint = run(server, "--judge_model", "another")
        assert code == 1 and "is kept" in said and "no reply" in complaint
        assert (tmp_path / "out" / "result.json").read_bytes() == whole and card() == table
        calls, server.fault = server.answered.total(), ""
        assert run(server)[0] == 0 and server.answered.total() == calls  # the first judge's replies are there still
    assert result(tmp_path, "result.partial")["runs"]["tuned"]["statuses"] == {"no_reply": 6}


@pytest.mark.parametrize(
    "fault, said",
    [("402", "has no credit left (HTTP 402: no credit)"), ("quota", "exceeded your current quota"),
     ("billing", "has no credit left (HTTP 400: hard limit)"), ("parameter", "does not take a parameter"),
     ("401", "refuses the key"), ("html", "answers with HTML")],
)  # fmt: skip
def test_what_a_person_has_to_mend_stops_the_run(fault, said, run, card, tmp_path):
    with JudgeServer() as server:
        assert run(server, "--limit", "2")[0] == 0  # so that nothing has to be drawn
    for path in (tmp_path / "out").glob("result*"):
        path.unlink()
    with JudgeServer(fault) as server:
        (tmp_path / "out" / "tuned" / "replies.jsonl").unlink()
        code, _, complaint = run(server, "--limit", "2")
        assert code == 1 and said in complaint and len(complaint) < 400 and not list(tmp_path.rglob("result*"))
        assert server.tried.total() <= 2
        server.fault = ""
        assert run(server, "--limit", "2")[0] == 0 and server.answered.total() == 2
    assert result(tmp_path)["runs"]["tuned"]["statuses"] == {"ok": 2}


@pytest.mark.parametrize("fault, status", [("refused", "refused"), ("moderated", "refused"), ("empty", "empty"),
                                           ("garbled", "parse_error")])  # fmt: skip
def test_replies_without_marks_are_asked_again_when_wanted(fault, status, run, card, tmp_path):
    with JudgeServer(fault, share=0.5) as server:
        code, said, _ = run(server)
        statuses = result(tmp_path)["runs"]["tuned"]["statuses"]
        assert code == 0 and set(statuses) == {"ok", status} and f"{statuses[status]} {status}" in said
        tried, server.fault = server.tried.total(), ""
        assert run(server)[0] == 0 and server.tried.total() == tried  # they are replies, so they are kept
        assert run(server, "--retry", "failed")[0] == 0
        assert server.tried.total() == tried + statuses[status]
    assert result(tmp_path)["runs"]["tuned"]["statuses"] == {"ok": 6} and "6 ok" in card()


def test_nothing_readable_is_not_a_result(run, card, tmp_path):
    with JudgeServer("garbled") as server:
        code, said, complaint = run(server)
    assert code == 1 and "No image has marks" in complaint and "6 parse_error" in said and card() == "# Tuned\n"
    assert result(tmp_path)["runs"]["tuned"]["statuses"] == {"parse_error": 6}


@pytest.mark.parametrize("dress", DRESSES)
def test_a_reply_in_another_dress_is_read(dress, run, tmp_path):
    with JudgeServer() as server:
        assert run(server)[0] == 0
        plain = result(tmp_path)["runs"]["tuned"]
        (tmp_path / "out" / "tuned" / "replies.jsonl").unlink()
        server.fault = dress
        assert run(server)[0] == 0 and run(server)[0] == 0  # and is read again from the file
    assert result(tmp_path)["runs"]["tuned"] == plain


# ---- before anything is drawn


@pytest.mark.parametrize("posts_only", [False, True])
def test_a_wrong_key_is_found_before_anything_is_drawn(posts_only, run, tmp_path):
    with JudgeServer("401", posts_only=posts_only) as server:
        code, _, complaint = run(server)
    assert code == 1 and "refuses the key" in complaint and not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("posts_only, calls", [(False, 6), (True, 7)])
def test_looking_costs_nothing_where_a_server_lists_its_models(posts_only, calls, run):
    with JudgeServer(posts_only=posts_only) as server:
        assert run(server)[0] == 0 and run(server)[0] == 0
        assert server.looked == 1 and server.answered.total() == calls


@pytest.mark.parametrize(
    "name, flags, said",
    [("wise", (), "needs 400 rows of culture, but there are 1"), ("gedit", ("--limit", "3"), "is of motion_change")],
)
def test_too_few_rows_for_a_mode_are_found_before_anything_is_drawn(name, flags, said, run, tmp_path):
    with JudgeServer() as server:
        code, _, complaint = run(server, "--compat", "uniedit", *flags, name=name)
        assert code == 1 and said in complaint and not server.tried
    assert not (tmp_path / "out").exists()


# ---- what the card holds


def test_a_trial_leaves_the_card_alone(run, card, tmp_path):
    with JudgeServer() as server:
        code, said, _ = run(server, "--limit", "2", "--output_dir", tmp_path / "trial")
        assert code == 0 and card() == "# Tuned\n" and "uses only the first items" in said
        assert "Only the first 2 of 6 items were used." in said
        run(server, "--limit", "2", "--output_dir", tmp_path / "trial", "--write_card")
        assert "2 items, seeds [0]" in card()
        assert run(server)[0] == 0
        whole = card()
        assert "6 items, seeds [0]" in whole and "2 items" not in whole
        _, said, _ = run(server, "--limit", "2", "--output_dir", tmp_path / "trial", "--write_card")
        assert card() == whole and "its table covers more images" in said


def test_a_mode_is_named_in_table_and_card(run, card, tmp_path):
    with JudgeServer() as server:
        code, said, _ = run(server, "--compat", "lmms-eval", name="imgedit")
    assert code == 0 and "scored as lmms-eval's script (--compat lmms-eval)" in said
    assert "(--compat lmms-eval)" in card() and result(tmp_path)["compat"] == "lmms-eval"


def test_a_shipped_model_is_left_alone():
    whole = {"runs": {"tuned": {"statuses": {"ok": 2}}}}
    assert "comes with this project" in why_not_written(whole, str(SHIPPED / "small_bagel"), False, False)
    assert why_not_written(whole, str(SHIPPED / "small_bagel"), True, False) == ""
    assert (SHIPPED / "small_bagel" / "README.md").is_file()


def test_an_official_script_without_a_number_is_told():
    """As many rows as it needs, and one reply that it cannot read."""
    rows = [{"Prompt": "p", "Explanation": "e", "Subcategory": "Horizontal time" if n % 2 else "", "prompt_id": n}
            for n in range(1, 1001)]  # fmt: skip
    items = [Item(f"{row['prompt_id']:04d}", "p", row) for row in rows]
    reply, suite = "Consistency: 2\nRealism: 1\nAesthetic Quality: 1", suite_of("wise")
    replies = {item.name: reply if index else "no" for index, item in enumerate(items)}
    outcomes = {(item.name, 0): suite.score(item, {"wise": replies[item.name]}, "uniedit") for item in items}
    found = compare(suite, items, [0], outcomes, None, "uniedit")
    assert "stops at culture" in found["runs"]["tuned"]["problem"] and found["runs"]["tuned"]["summary"] == {}
    assert "no number" in why_not_written(found, "model", True, False)


# ---- seeds


def test_seeds_in_another_order_are_the_same_run(run, tmp_path):
    with JudgeServer() as server:
        assert run(server, "--seeds", "0", "1")[0] == 0
        first, calls = (tmp_path / "out" / "result.json").read_bytes(), server.tried.total()
        assert run(server, "--seeds", "1", "0")[0] == 0
        assert server.tried.total() == calls and (tmp_path / "out" / "result.json").read_bytes() == first
        code, _, complaint = run(server, "--seeds", "1", "1")
        assert code == 1 and "seed 1 is given twice" in complaint


# ---- processes


def test_ctrl_c_ends_within_three_seconds_of_a_slow_call(parts, tmp_path):
    with JudgeServer(seconds=60) as server:
        words = ["evaluate", "--suite", "wise", "--prompts", parts / "wise.json", "--model", parts / "tuned",
                 "--drawing", FAST, "--output_dir", tmp_path / "out", "--judge_model", "judge", "--judge_base_url",
                 server.address, "--judge_api_key_env", "none"]  # fmt: skip
        process = subprocess.Popen([sys.executable, "-m", "uniedit_hf.cli", *map(str, words)], stderr=subprocess.PIPE)
        deadline = time.monotonic() + 100
        while len(server.tried) < 6 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(server.tried) == 6
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=60)[1]
        assert time.monotonic() - start < 3
    assert process.returncode == 130 and b"stopped by Ctrl-C" in error and b"Traceback" not in error


def test_a_judge_is_asked_where_a_loop_runs_already(parts, tmp_path):
    suite = suite_of("wise")
    items = suite.read(str(parts / "wise.json"))[:2]
    for item in items:
        path = running.picture_path(tmp_path, item, 0)
        path.parent.mkdir(parents=True)
        picture(16, 16).save(path)

    async def notebook(server):
        judge = Judge(JudgeSettings("judge", server.address, None))
        return running.judge(suite, judge, items, (0,), tmp_path, {})

    with JudgeServer() as server:
        outcomes = asyncio.run(notebook(server))
    assert {outcome.status for outcome in outcomes.values()} == {"ok"}


def test_waits_grow_over_minutes_and_follow_the_server():
    settings = JudgeSettings("judge", "http://127.0.0.1:9/v1", None).backend().settings
    caller = Caller("judge", None, settings)
    waits = [caller._wait(attempt, PassingFailure("busy")) for attempt in range(settings.attempts - 1)]
    assert all(later > before * 0.99 for before, later in zip(waits[:-2], waits[2:])) and 60 < sum(waits) <= 123
    assert caller._wait(0, PassingFailure("busy", wait=30)) == 30
