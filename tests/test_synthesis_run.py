"""Whole runs over real HTTP: nothing is lost, nothing is paid twice, and being killed changes nothing."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections import Counter

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from model_server import IMAGE_FORMS, Behaviour, ModelServer
from synthesis_runs import CHAT, EDITOR, killed_run, result_of, settings_for, start, write_settings

from uniedit_hf.calls.caller import MALFORMED_AT_FIRST
from uniedit_hf.calls.messages import BackendError
from uniedit_hf.cli import main
from uniedit_hf.dataset_builder.uniedit_148k import UniEdit148k
from uniedit_hf.release.build import build
from uniedit_hf.release.raw import find_release
from uniedit_hf.schema import row_features, stable_id
from uniedit_hf.synthesis.run import run
from uniedit_hf.synthesis.settings import settings_from


ROWS = 120
KEY = "sk-test-0123456789abcdef"
FAILING = Behaviour(faults=0.08, others=0.04, slow=0.02)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", autouse=True)
def key():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_MODEL_KEY", KEY)
        yield


@pytest.fixture(scope="module")
def server(key):
    with ModelServer(FAILING) as server:
        yield server


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """A run that nothing interrupts, and what the server saw of it."""
    folder = tmp_path_factory.mktemp("whole")
    merged = run(settings_from(with_key(settings_for(server, folder / "out", ROWS, export={"official": True})), "it"))
    return folder / "out", merged, server.calls, server.repeated


def with_key(settings: dict) -> dict:
    for backend in settings["backends"].values():
        backend["api_key_env"] = "TEST_MODEL_KEY"
    return settings


def test_every_row_is_exported_or_rejected_with_a_reason(whole, server):
    output_dir, merged, _, _ = whole
    rows, rejects = result_of(output_dir)
    assert len(rows) == merged.counts.records > ROWS / 4
    assert len(rows) + len(rejects) == ROWS
    assert all(reject["reason"] and reject["stage"] for reject in rejects)
    places = [reject["row"] for reject in rejects]
    assert places == sorted(places) and len(set(places)) == len(places)
    assert len({row[0] for row in rows}) == len(rows)
    assert {fault for fault in server.struck if server.struck[fault]} >= {"busy", "broken", "cut", "malformed"}


def test_calls_in_flight_are_bounded(whole, server):
    assert 2 < server.most_in_flight <= CHAT + EDITOR


def test_no_call_is_made_twice(whole):
    _, _, calls, repeated = whole
    assert repeated == 0 and calls > ROWS


def test_the_set_loads(whole, tmp_path):
    output_dir, merged, _, _ = whole
    data = load_dataset(str(output_dir / "dataset"), split="train", cache_dir=str(tmp_path))
    assert data.features == row_features() and len(data) == merged.counts.records
    for row in data:
        assert row["source_image"].size == tuple(row["source_size"])
        assert row["target_image"].size == tuple(row["target_size"])
        assert row["variant"].count("=") > 3 and "depth=" in row["variant"]


def test_the_folder_of_a_run_is_read_as_its_data_set(whole, tmp_path):
    """And not its work as well, which holds every row a second time."""
    output_dir, merged, _, _ = whole
    release = find_release(output_dir)
    files = [file for splits in release.tables.values() for files in splits.values() for file in files]
    assert files and {file.parent for file in files} == {output_dir / "dataset"}
    build(output_dir, tmp_path / "built")
    rows = [pq.read_metadata(file).num_rows for file in (tmp_path / "built").rglob("*.parquet")]
    assert sum(rows) == merged.counts.records
    (tmp_path / "half/work").mkdir(parents=True)
    (tmp_path / "half/work/plan.json").write_text('{"shards": 1}')
    with pytest.raises(ValueError, match="half is an unfinished run of `uniedit synthesize`"):
        find_release(tmp_path / "half")


def test_the_official_export_is_read_back_to_the_same_rows(whole, tmp_path):
    """By the data set builder, and by what `uniedit dataset build` makes with it. What the format has no field for is
    null, and nothing else is."""
    output_dir, merged, _, _ = whole
    report = build(output_dir / "official", tmp_path / "built")
    assert report.faults == [] and report.rows == {"148k/train": merged.counts.records}
    builder = UniEdit148k(data_dir=str(output_dir / "official"), cache_dir=str(tmp_path / "c"), strict=True)
    builder.download_and_prepare()
    assert builder.release.unplaced == []
    ours = rows_of(load_dataset(str(output_dir / "dataset"), split="train", cache_dir=str(tmp_path / "a")))
    for row in ours:
        row |= dict.fromkeys(("variant", "editor", "judge", "license"))
        row["scores"] = {"quality": row["scores"]["quality"], "instruction": None, "preservation": None}
        row["id"] = stable_id(row["source_image"], row["instruction"], row["target_image"])
    built = load_dataset(str(tmp_path / "built"), "148k", split="train", cache_dir=str(tmp_path / "b"))
    assert rows_of(builder.as_dataset(split="train")) == ours
    assert rows_of(built) == ours and built.features == row_features()


def rows_of(data) -> list[dict]:
    """Every row with its images as they are encoded; their names are another matter."""
    rows = data.with_format("arrow")[:].to_pylist()
    return [row | {side: row[side]["bytes"] for side in ("source_image", "target_image")} for row in rows]


def test_the_report_accounts_for_every_row(whole):
    output_dir, merged, calls, _ = whole
    report = json.loads((output_dir / "report.json").read_text())
    assert report["stages"][0]["taken"] == ROWS and report["stages"][-1]["given"] == report["records"]
    assert sum(stage["rejected"] for stage in report["stages"]) == report["rejects"]
    assert sum(each["rows"] for each in report["rejections"]) == report["rejects"]
    assert sum(report["counts"]["category"].values()) == sum(report["counts"]["depth"].values()) == report["records"]
    assert sum(each["calls"] for each in report["backends"]) == calls
    page = (output_dir / "report.html").read_text()
    assert page.count("data:image/webp;base64,") == 2 * min(24, report["records"])
    assert 'src="http' not in page and "<script" not in page


def test_a_finished_run_asks_nothing_again(whole, server):
    output_dir, _, _, _ = whole
    before, rows = server.calls, result_of(output_dir)
    for kept in ("summary", "cache"):
        if kept == "cache":  # even if all but the call cache is lost
            for file in (output_dir / "work" / "shards").iterdir():
                file.unlink()
        run(settings_from(with_key(settings_for(server, output_dir, ROWS, export={"official": True})), "it"))
        assert server.calls == before and result_of(output_dir) == rows


def test_the_key_is_nowhere(whole):
    output_dir, _, _, _ = whole
    files = [path for path in output_dir.rglob("*") if path.is_file()]
    assert any(path.suffix == ".sqlite" for path in files)
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("rows", "kills"), [(40, 2), pytest.param(2000, 20, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])]
)
def test_being_killed_changes_nothing(tmp_path, rows, kills):
    with ModelServer(FAILING) as server:
        merged = run(settings_from(with_key(settings_for(server, tmp_path / "whole", rows)), "it"))
        total, in_flight = server.calls, server.most_in_flight
        assert merged.counts.records + merged.counts.rejects == rows
        assert in_flight <= CHAT + EDITOR and server.repeated == 0
    with ModelServer(FAILING) as server:
        settings = with_key(settings_for(server, tmp_path / "killed", rows))
        struck, repeated = killed_run(settings, server, tmp_path, kills, total)
        print(f"{rows} rows, {total} calls, {merged.counts.records} records; killed {struck} times, ", end="")  # noqa: T201
        print(f"calls repeated after each: {repeated}, in flight at most {server.most_in_flight}")  # noqa: T201
    assert struck >= kills - 1
    assert all(number <= CHAT + EDITOR for number in repeated)
    assert result_of(tmp_path / "killed") == result_of(tmp_path / "whole")


def test_what_failed_is_tried_again_by_the_next_run(tmp_path):
    with ModelServer(Behaviour(always="broken")) as broken:
        settings = with_key(settings_for(broken, tmp_path / "out", 8))
        merged = run(settings_from(settings, "it"))
        assert merged.failed == merged.counts.rejects == 8
        assert set(merged.counts.by_reason) == {("classify", "the call failed")}
        broken.behaviour = Behaviour()
        merged = run(settings_from(settings, "it"))
    assert merged.failed == 0 and ("classify", "the call failed") not in merged.counts.by_reason


@pytest.mark.parametrize(
    "status, code, message, said",
    [
        pytest.param(402, None, "no credit", "has no credit left", marks=pytest.mark.slow),
        (400, "billing_hard_limit_reached", "hard limit", "has no credit left"),
        pytest.param(
            429, "insufficient_quota", "You exceeded your current quota", "has no credit left", marks=pytest.mark.slow
        ),
        pytest.param(
            400,
            "unsupported_parameter",
            "'max_tokens' is not supported",
            "does not take a parameter",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_a_person_has_to_mend_stops_the_run_and_costs_no_row(status, code, message, said, tmp_path):
    """Then the same run goes on, also behind a gateway that wraps replies, and no call is paid twice."""
    with ModelServer() as server:
        run(settings_from(with_key(settings_for(server, tmp_path / "whole", 16)), "it"))
        whole = result_of(tmp_path / "whole")
    with ModelServer(Behaviour(status=status, code=code, message=message, after=20)) as server:
        settings = settings_from(with_key(settings_for(server, tmp_path / "out", 16)), "it")
        with pytest.raises(BackendError, match=said):
            run(settings)
        assert server.calls >= 10
        server.behaviour = Behaviour(dress="comment", status=status, code=code, message=message, after=40)
        with pytest.raises(BackendError, match=said):
            run(settings)
        server.behaviour = Behaviour(dress="events")
        run(settings)
        assert server.repeated == 0
    assert result_of(tmp_path / "out") == whole


def test_a_run_through_every_fault_is_whole_and_pays_no_image_twice(tmp_path):
    """No credit, a billing limit, cut bodies, images in every form and halves of characters; then a repaired server
    and the same command."""
    with ModelServer() as server:
        run(settings_from(with_key(settings_for(server, tmp_path / "whole", 24)), "it"))
        whole, calls = result_of(tmp_path / "whole"), server.calls
    dressed = {"image_as": "mixed", "dress": "surrogate in a reason"}
    with ModelServer(Behaviour(status=402, message="no credit", after=25, **dressed)) as server:
        settings = settings_from(with_key(settings_for(server, tmp_path / "out", 24)), "it")
        with pytest.raises(BackendError, match="has no credit left .HTTP 402"):
            run(settings)
        limit = {"status": 400, "code": "billing_hard_limit_reached", "message": "hard limit"}
        server.behaviour = Behaviour(**limit, after=server.tried.total() + 30, **dressed)
        with pytest.raises(BackendError, match="has no credit left .HTTP 400"):
            run(settings)
        server.behaviour = Behaviour(cut=0.4, download=503, **dressed)
        assert run(settings).failed
        server.behaviour = Behaviour(**dressed)
        merged = run(settings)
        assert server.repeated == 0 and server.calls == calls and merged.failed == 0
        assert len([name for name, number in server.struck.items() if name in IMAGE_FORMS and number]) >= 4
        assert server.downloads and server.struck["cut"]
    rows, rejects = result_of(tmp_path / "out")
    assert rows == whole[0] and "\ufffdSeen." in {each["detail"].removeprefix("grade 2: ") for each in rejects}
    assert _reasons(rejects) == _reasons(whole[1]) and len(rows) + len(rejects) == 24


def test_a_server_that_cannot_give_the_form_stops_early_and_is_asked_again(tmp_path):
    with ModelServer() as server:
        run(settings_from(with_key(settings_for(server, tmp_path / "whole", 40)), "it"))
        whole = result_of(tmp_path / "whole")
    with ModelServer(Behaviour(prose=True)) as server:
        settings = settings_from(with_key(settings_for(server, tmp_path / "out", 40)), "it")
        with pytest.raises(
            BackendError, match="none of its first 2. replies in the requested form.*same command again"
        ):
            run(settings)
        assert server.calls <= MALFORMED_AT_FIRST + 2 * CHAT
        server.behaviour = Behaviour()
        run(settings)
    assert result_of(tmp_path / "out") == whole


@pytest.mark.slow
def test_what_was_refused_or_unreadable_is_asked_again_by_retry(tmp_path):
    with ModelServer() as server:
        run(settings_from(with_key(settings_for(server, tmp_path / "whole", 24)), "it"))
        whole = result_of(tmp_path / "whole")
    with ModelServer(Behaviour(others=0.3, prose=True, after=60, image_as="unknown")) as server:
        config = write_settings(with_key(settings_for(server, tmp_path / "out", 24)), tmp_path / "out.yaml")
        assert main(["synthesize", "--config", str(config)]) == 0
        reasons = {each["reason"] for each in result_of(tmp_path / "out")[1]}
        assert {"the model refused", "the reply cannot be read"} <= reasons
        server.behaviour = Behaviour()
        calls, spent = server.calls, json.loads((tmp_path / "out/report.json").read_text())["backends"]
        assert main(["synthesize", "--config", str(config)]) == 0
        assert server.calls == calls
        assert not main(["synthesize", "--config", str(config), "--retry", "failed"])
        assert server.calls > calls
        again = json.loads((tmp_path / "out/report.json").read_text())["backends"]
    assert all(new["calls"] > old["calls"] for new, old in zip(again, spent, strict=True))  # paid calls stay counted
    assert result_of(tmp_path / "out") == whole


@pytest.mark.slow
def test_a_server_that_is_not_running_is_told_soon(tmp_path):
    with ModelServer() as server:
        settings = with_key(settings_for(server, tmp_path / "out", 40))
    for backend in settings["backends"].values():
        backend |= {"attempts": 6, "first_wait": 1.0, "timeout": 120.0}
    start_at = time.monotonic()
    with pytest.raises(BackendError, match="chat cannot be reached .no connection .ConnectError.*base_url"):
        run(settings_from(settings, "it"))
    assert time.monotonic() - start_at < 30


def _reasons(rejects: list[dict]) -> list[tuple[str, str, str]]:
    return [(each["id"], each["stage"], each["reason"]) for each in rejects]


@pytest.mark.parametrize("dress", ["html", "surrogate"])
def test_a_body_that_cannot_be_read_ends_no_run(dress, tmp_path):
    with ModelServer(Behaviour(dress=dress, after=20)) as server:
        settings = settings_from(with_key(settings_for(server, tmp_path / "out", 12)), "it")
        try:
            run(settings)
        except BackendError as error:
            assert dress == "html" and "in a row" in str(error)
        server.behaviour = Behaviour()
        run(settings)
        assert server.repeated == 0
    rows, rejects = result_of(tmp_path / "out")
    assert len(rows) + len(rejects) == 12 and not [each for each in rejects if each["reason"] == "the call failed"]
    assert rows or dress == "surrogate"  # JSON behind half a character is an answer in another form


def test_two_runs_in_one_folder_are_refused(server, tmp_path):
    config = write_settings(with_key(settings_for(server, tmp_path / "out", 400)), tmp_path / "run.yaml")
    first = start(config)
    try:
        while not list((tmp_path / "out").glob("work/calls/*.sqlite")):
            assert first.poll() is None
            time.sleep(0.05)
        second = start(config)
        _, errors = second.communicate(timeout=120)
        assert second.returncode == 1 and "in use" in errors.splitlines()[-1], errors
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()


@pytest.mark.parametrize("limit", [{"calls": 40}, {"tokens": 3000}, {"money": 0.03}])
def test_the_budget_stops_cleanly_and_a_larger_one_goes_on(server, tmp_path, limit):
    settings = with_key(settings_for(server, tmp_path / "out", 30))
    settings["backends"]["chat"]["price"] = {"tokens_in": 10.0, "tokens_out": 10.0}
    merged = run(settings_from(settings | {"budget": limit}, "it"))
    name, most = next(iter(limit.items()))
    spent = sum(each[name] for each in merged.summaries[0]["backends"].values())
    per_call = {"calls": 0, "tokens": 120, "money": 0.0012}[name]
    assert name in merged.stopped and spent <= most + per_call * (CHAT + EDITOR)
    assert merged.counts.records + merged.counts.rejects < 30
    assert "Stopped early" in (tmp_path / "out" / "report.html").read_text()
    again = run(settings_from(settings, "it"))
    assert again.stopped is None and again.counts.records + again.counts.rejects == 30


def test_balance_is_exact_and_stops_reading(server, tmp_path):
    shares = {"shape": 2, "color": 2, "knowledge": 1}
    settings = settings_for(server, tmp_path / "out", 2000, balance={"size": 15, "shares": shares}, window=8)
    merged = run(settings_from(with_key(settings), "it"))
    assert merged.counts.by_column["category"] == Counter({"shape": 6, "color": 6, "knowledge": 3})
    assert merged.summaries[0]["read"] < 1000
    again = run(settings_from(with_key(settings | {"output_dir": str(tmp_path / "again")}), "it"))
    assert result_of(tmp_path / "again") == result_of(tmp_path / "out") and again.counts.records == 15


def test_requests_are_spread_over_the_minute(server, tmp_path):
    settings = with_key(settings_for(server, tmp_path / "out", 6))
    settings["backends"]["chat"]["requests_per_minute"] = 600.0  # ten a second
    before, start_time = server.calls, time.monotonic()
    run(settings_from(settings, "it"))
    calls = server.calls - before
    cache = sqlite3.connect(tmp_path / "out" / "work" / "calls" / "00000.sqlite")
    chats = cache.execute("SELECT COUNT(*) FROM reply WHERE backend = 'chat'").fetchone()[0]
    assert calls >= chats >= 6 and time.monotonic() - start_time >= (chats - 1) / 10
