"""Settings with their mistakes, and the command."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from model_server import ModelServer
from PIL import Image
from synthesis_drafts import minimal
from synthesis_runs import settings_for, write_settings

from uniedit_hf.cli import main
from uniedit_hf.cli.parsing import CommandParser
from uniedit_hf.cli.synthesize import run as command
from uniedit_hf.schema import TASK_CATEGORIES
from uniedit_hf.synthesis.settings import Balance, settings_from
from uniedit_hf.synthesis.stages.classify import Classification
from uniedit_hf.synthesis.stages.instruct import Writing
from uniedit_hf.synthesis.stages.verify import Grade, Judgement


ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples" / "synthesis").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_parsed(path):
    (options,) = CommandParser("synthesize", "", command).parse(["--config", str(path)])
    given = dataclasses.asdict(options)
    for of_the_command in ("dry_run", "retry"):
        given.pop(of_the_command)
    settings = settings_from(given, path.name)
    assert yaml.safe_load(path.read_text())["output_dir"].startswith("runs/") and settings.edit.backend


REPLIES = {"classify": Classification, "instruct": Writing, "verify.judge": Judgement, "verify.quality": Grade}


@pytest.mark.parametrize("stage", REPLIES)
def test_the_page_has_the_fields_that_a_server_must_give(stage):
    """Names, in their order; of lists, those of their items too."""
    page = (ROOT / "docs" / "synthesis.md").read_text(encoding="utf-8")
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {stage} | `{{")]
    schema = REPLIES[stage].model_json_schema()
    expected = []
    for field, kind in schema["properties"].items():
        item = kind.get("items", {}).get("$ref", "").rpartition("/")[2]
        expected += [field, *(schema["$defs"][item]["properties"] if item else ())]
    assert re.findall(r'"(\w+)":', line) == expected


def planned(**changes) -> dict:
    return {
        "source": {"kind": "planned_edits"},
        "classify": None,
        "balance": {"size": 9, "shares": {"shape": 1}},
    } | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edit": {"backend": "exact", "sharp": 1}}, "edit.sharp: there is no such setting"),
        ({"source": {"kind": "csv"}}, "source: .*conversations.*rows.*easy_vqa"),
        ({"edit": {"backend": "gpt"}}, "edit: there is no backend 'gpt'; known are exact"),
        ({"balance": {"shares": {"shapes": 1}}}, "balance.shares"),
        ({"source": {"kind": "rows"}}, "source: needs either files or dataset"),
        ({"source": {"kind": "easy_vqa", "limit": 0}}, "it: source.limit: Input should be greater than 0"),
        ({"instruct": {"backend": "rules", "depths": {4: 1}}}, "depths"),
        ({"instruct": {"backend": "rules", "depths": {1: 0}}}, "needs a depth with a weight above 0"),
        ({"verify": {"judge": "rules"}, "instruct": {"backend": "c"}, "backends": {"c": {"kind": "openai",
          "model": "m", "api_key": "sk-oops"}}}, "backends.c.api_key: there is no such setting"),
        ({"backends": {"c": {"kind": "openai", "model": "m", "base_url": "http://me:sk-oops@host/v1"}}}, "no key"),
        ({"instruct": {"backend": "rules", "depths": {0: 1}}}, "instruct.depths: 'rules' always writes a condition"),
        ({"engine": {"kind": "datatrove", "executor": "slurm"}}, "engine: slurm needs partition and time"),
        ({"source": {"kind": "rows", "files": ["a.jsonl"]}}, "'rules' only understands images of easy-VQA"),
        ({"edit": {"backend": "c"}, "backends": {"c": {"kind": "openai", "model": "m"}}}, "not an image editor"),
        ({"classify": None}, "classify: this source has no categories"),
        ({"source": {"kind": "planned_edits"}}, "classify: the source planned_edits names the categories itself"),
        (planned(balance={"shares": {"shape": 1}}), "balance.size: the source planned_edits needs to know how many"),
        (planned(balance={"size": 9}), "balance.shares: give weights to some of shape, color, count, location, know"),
        (planned(balance={"size": 9, "shares": {"ocr": 1}}), "balance.shares: give weights to some of shape"),
        (planned(instruct={"backend": "rules", "depths": {0: 1, 1: 1}}), "instruct.depths: 'rules' always writes"),
        (planned(instruct={"backend": "rules", "unchanged": 1.5}), "instruct.unchanged"),
        (planned(source={"kind": "planned_edits", "asking": "riddle"}), "source.asking"),
        (planned(source={"kind": "plain_edits", "of": "x"}), "plain_edits makes one edit of each image: leave out"),
        ({"balance": {"shares": "149k"}}, "^it: balance.shares: Input should be '148k' or '40k'"),
        ({"backends": {"c": {"kind": "openai", "model": "m", "price": {"picture": 1}}}},
         "backends.c.price: picture is now called image: use the new name"),
        ({"backends": {"c": {"kind": "openai", "model": "m", "arguments": {"extra_headers": {"k": "sk-oops"}}}}},
         "extra_headers may hold a key"),
    ],
)  # fmt: skip
def test_mistakes_in_settings_are_one_sentence_without_keys(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        settings_from(minimal(**changes), "it")
    assert "\n" not in str(caught.value) and "sk-oops" not in str(caught.value)


def test_published_shares_are_built_in():
    for name in ("148k", "40k"):
        weights = Balance(size=10, shares=name).weights
        assert set(weights) == set(TASK_CATEGORIES) and sum(weights.values()) == pytest.approx(100, abs=0.2)


def test_the_command_makes_edits_by_rules_and_prices_them_first(tmp_path, capsys):
    settings = yaml.safe_load((ROOT / "examples" / "synthesis" / "easy_vqa.yaml").read_text())
    settings |= {"output_dir": str(tmp_path / "out"), "balance": settings["balance"] | {"size": 20}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert main(["synthesize", "--config", str(tmp_path / "run.yaml"), "--dry_run"]) == 0
    assert "38,575 rows" in capsys.readouterr().out and not (tmp_path / "out").exists()
    assert main(["synthesize", "--config", str(tmp_path / "run.yaml")]) == 0
    assert "20 edits in" in capsys.readouterr().out
    settings |= {"output_dir": str(tmp_path / "few"), "source": {"kind": "easy_vqa", "limit": 12}}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(settings))
    assert main(["synthesize", "--config", str(tmp_path / "few.yaml")]) == 0
    assert "Fewer than the 20 edits of balance.size" in capsys.readouterr().out
    assert (tmp_path / "out" / "report.html").exists() and list((tmp_path / "out" / "official").glob("*148k.jsonl"))


def test_a_dry_run_prices_every_stage(tmp_path, capsys):
    settings = minimal(
        output_dir=str(tmp_path / "out"),
        source={"kind": "easy_vqa", "limit": 1000},
        backends={
            "chat": {"kind": "openai", "model": "m-1", "price": {"tokens_in": 2.0, "tokens_out": 8.0}},
            "painter": {"kind": "http_editor", "model": "p", "base_url": "http://x/", "price": {"image": 0.04}},
        },
        classify={"backend": "chat"},
        balance={"size": 100, "shares": {"color": 1}},
        instruct={"backend": "chat"},
        edit={"backend": "painter"},
        verify={"judge": "chat", "quality": "chat"},
    )
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert main(["synthesize", "--config", str(tmp_path / "run.yaml"), "--dry_run"]) == 0
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines["classify"][3] == "1,000" and lines["edit"][3] == "100" and float(lines["edit"][5]) == 4.0
    assert float(lines["at"][-1]) > 4.0


def test_many_near_duplicates_are_told_with_the_setting(tmp_path, capsys):
    noise, lines = Image.effect_noise((64, 64), 80).convert("RGB"), []
    for number in range(12):
        noise.putpixel((0, 0), (number, 0, 0))  # other pixels, the same look
        noise.save(tmp_path / f"{number}.png")
        row = {"image": f"{number}.png", "question": "what color?", "answer": "green", "category": "color"}
        lines.append(json.dumps(row))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    with ModelServer() as server:
        source = {"kind": "rows", "files": [str(tmp_path / "rows.jsonl")]}
        settings = settings_for(server, tmp_path / "out", 12, source=source, verify={})
        assert main(["synthesize", "--config", str(write_settings(settings, tmp_path / "run.yaml"))]) == 0
    said = capsys.readouterr().out
    assert "11 of 12 rows were dropped because their image looks like" in said and "near_duplicates: false" in said


def test_a_run_that_makes_nothing_says_so(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"image": "none.png", "question": "q?", "answer": "a", "category": "ocr"}')
    settings = minimal(
        output_dir=str(tmp_path / "out"),
        source={"kind": "rows", "files": [str(tmp_path / "rows.jsonl")]},
        backends={"c": {"kind": "openai", "model": "m", "base_url": "http://localhost:1"},
                  "e": {"kind": "http_editor", "model": "m", "base_url": "http://localhost:1"}},
        classify=None, instruct={"backend": "c"}, edit={"backend": "e"},
    )  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert main(["synthesize", "--config", str(tmp_path / "run.yaml")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "No edit was made from 1 rows (1 source: image not found): see " in error
    (tmp_path / "file").write_text("")
    settings["output_dir"] = str(tmp_path / "file")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert main(["synthesize", "--config", str(tmp_path / "run.yaml")]) == 1
    assert "is not a folder. Choose another place." in capsys.readouterr().err


def test_mistakes_on_the_command_line_are_one_sentence(tmp_path, capsys):
    for settings, message in (
        (minimal() | {"sorce": {}}, "there is no option sorce; did you mean source?"),
        (minimal(edit={"backend": "nobody"}), "there is no backend 'nobody'"),
    ):
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
        with pytest.raises(SystemExit) if "sorce" in settings else _nothing():
            assert main(["synthesize", "--config", str(tmp_path / "run.yaml")]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def _nothing():
    from contextlib import nullcontext

    return nullcontext()
