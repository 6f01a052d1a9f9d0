"""The plug-in for lmms-eval through its own command line: `make lmms` installs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.evaluation_parts import GENEVAL, write_benchmarks, write_detector
from tests.judge_server import JudgeServer
from tests.tiny_models import FAMILIES, picture
from uniedit_hf.evaluation.lmms import TASKS


pytest.importorskip("lmms_eval", reason="needs lmms-eval: make lmms")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[1]
LOCAL_TASK = """
task: local_questions
dataset_path: parquet
dataset_kwargs: {data_files: {test: rows.parquet}}
test_split: test
output_type: generate_until
doc_to_visual: image
doc_to_text: question
doc_to_target: answer
generation_kwargs: {max_new_tokens: 8}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}]
"""
FAST = "num_timesteps=2"


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    for name, family in FAMILIES.items():
        family.model().save_pretrained(folder / name)
        family.processor().save_pretrained(folder / name)
    write_detector(folder)
    write_benchmarks(folder)
    return folder


def lmms_eval(task: str, model_args: str, output: Path, *flags: str, include: Path = TASKS, **variables) -> dict:
    """The numbers that lmms-eval writes, and its log under `log`."""
    command = [sys.executable, "-m", "lmms_eval", "--model", "uniedit", "--model_args", model_args, "--tasks", task,
               "--include_path", str(include), "--output_path", str(output), *flags]  # fmt: skip
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=550)
    (written,) = output.rglob("*_results.json") if list(output.rglob("*_results.json")) else [None]
    assert written, done.stdout[-3000:] + done.stderr[-3000:]
    numbers = json.loads(written.read_text())["results"][task]
    return {name.removesuffix(",none"): value for name, value in numbers.items()} | {"log": done.stdout}


def test_the_quickstart_model_answers_a_local_task_offline(tmp_path):
    from datasets import Dataset, Image as ImageFeature
    from easy_vqa import get_test_image_paths, get_test_questions

    paths, asked = get_test_image_paths(), list(zip(*get_test_questions()))[:40]
    rows = [{"question": question, "answer": answer, "image": paths[index]} for question, answer, index in asked]
    Dataset.from_list(rows).cast_column("image", ImageFeature()).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "local_questions.yaml").write_text(LOCAL_TASK)
    model = f"pretrained={ROOT / 'assets' / 'small_bagel'},dtype=float32"
    found = lmms_eval("local_questions", model, tmp_path / "out", "--batch_size", "8", include=tmp_path)
    assert found["exact_match"] > 0.85  # 0.905 on 200 questions, benchmarks/RESULTS.md


@pytest.mark.parametrize("family", list(FAMILIES))
def test_geneval_is_drawn_and_detected(family, parts, tmp_path):
    pictures = tmp_path / "pictures"
    preset = "preset=model" if family == "janus" else "preset=uniedit"
    size = "" if family == "janus" else f"{FAST},"
    found = lmms_eval(
        "geneval", f"pretrained={parts / family},mode=generate,output_dir={pictures},{preset},dtype=float32",
        tmp_path / "out", "--limit", "4", *(["--gen_kwargs", FAST] if size else []),
        GENEVAL_PROMPTS=GENEVAL, GENEVAL_CLASS_NAMES=parts / "names.txt", GENEVAL_DETECTOR=parts / "detector",
        GENEVAL_CLIP=parts / "clip",
    )  # fmt: skip
    assert 0 <= found["overall"] <= 1
    drawn = sorted((pictures / "geneval" / "images").glob("*/0.png"))
    assert [path.parent.name[:5] for path in drawn] == ["00000", "00001", "00002", "00003"]
    stored = json.loads((pictures / "geneval" / "settings.json").read_text())["drawing"]
    assert stored.get("text_guidance_scale") == (None if family == "janus" else 8.0)
    assert len({path.read_bytes() for path in drawn}) > 1


def test_rise_is_edited_and_judged(parts, tmp_path):
    pictures = tmp_path / "pictures"
    with JudgeServer() as server:
        found = lmms_eval(
            "rise", f"pretrained={parts / 'bagel'},mode=edit,output_dir={pictures},dtype=float32", tmp_path / "out",
            "--gen_kwargs", f"{FAST},thinking_budget=0", RISE_PROMPTS=parts / "rise.json", RISE_IMAGES=parts,
            RISE_API_KEY="none", RISE_BASE_URL=server.address, RISE_MODEL_NAME="judge",
        )  # fmt: skip
        calls = server.answered.total()
    assert found["unreadable"] == 0 and 0 <= found["overall percent"] <= 100
    replies = [json.loads(line) for line in (pictures / "rise" / "replies.jsonl").read_text().splitlines()]
    assert len(replies) == calls == 6  # two free of consistency, three, and one for the puzzle
    assert {Image.open(path).mode for path in (pictures / "rise").rglob("*.png")} == {"RGB"}


def test_the_papers_prompts(monkeypatch):
    """In their words, with lmms-eval's own scoring behind them."""
    from lmms_eval.tasks import TaskManager
    from lmms_eval.utils import apply_template, load_yaml_config

    monkeypatch.setenv("OPENAI_API_KEY", "none")  # lmms-eval's MathVista makes its judge when it is imported
    tasks = {path.stem: load_yaml_config(str(path)) for path in TASKS.glob("*_uniedit.yaml")}
    assert (
        set(tasks) <= set(TaskManager(include_path=str(TASKS), include_defaults=False).all_tasks) and len(tasks) == 5
    )

    mme = tasks["mme_uniedit"]
    doc = {"question": "Is there a dog? Please answer yes or no.", "answer": "Yes", "category": "color",
           "question_id": "1"}  # fmt: skip
    asked = apply_template(mme["doc_to_text"], doc)
    assert asked == 'Is there a dog? Please answer yes or no. Directly answer the question using "Yes" or "No".'
    score = mme["process_results"](doc, ["Yes."])["mme_perception_score"]
    assert score["score"] == 1
    assert mme["metric_list"][0]["aggregation"]([score, score | {"score": 0.0}]) == 50  # acc 50, acc+ 0

    mmmu = tasks["mmmu_val_uniedit"]
    doc = {"id": "validation_Art_1", "question": " What is in <image 1>? ", "question_type": "multiple-choice",
           "options": "['a cat', 'a dog']", "answer": "B", "image_1": picture(8, 6), "image_2": picture(4, 4),
           "image_3": None}  # fmt: skip
    letter = "Answer with the option's letter from the given choices directly."
    assert mmmu["doc_to_text"](doc) == f"What is in <image 1>?\nA. a cat\nB. a dog\n{letter}"
    assert [each.size for each in mmmu["doc_to_visual"](doc)] == [(16, 12), (4, 4)]
    assert mmmu["process_results"](doc, ["B"])["mmmu_acc"]["parsed_pred"] == ["B"]
    opened = doc | {"question_type": "open", "options": "[]"}
    assert mmmu["doc_to_text"](opened).endswith("?\nAnswer the question using a single word or phrase.")

    doc = {"hint": "nan", "question": "Which?", "A": "one", "B": "two", "C": "nan"}
    asked = tasks["mmbench_en_dev_uniedit"]["doc_to_text"]
    assert asked(doc) == f"Which?\nA. one\nB. two\n{letter}"
    assert asked(doc | {"hint": "See."}).startswith("See.\nWhich?\nA. one")
    assert tasks["mathvista_testmini_uniedit"]["doc_to_text"] == "query"
    doc = {"Question": "Is it open?", "Options": "(a) Open (b) Closed"}
    mmvp = tasks["mmvp_uniedit"]
    asked = mmvp["doc_to_text"](doc, mmvp["lmms_eval_specific_kwargs"]["default"])
    assert asked == f"Is it open?\nA. Open\nB. Closed\n{letter}"


def test_what_is_missing_is_told_before_anything_is_drawn(parts, tmp_path):
    from uniedit_hf.evaluation.lmms.model import UniEdit
    from uniedit_hf.evaluation.lmms.suite_task import GenEval

    with pytest.raises(ValueError, match="needs the environment variable GENEVAL_CLASS_NAMES"):
        GenEval()
    with pytest.raises(ValueError, match="name a folder for them as output_dir"):
        UniEdit(str(parts / "bagel"), mode="edit")
    with pytest.raises(ValueError, match="mode is 'draw', but must be one of"):
        UniEdit(str(parts / "bagel"), mode="draw")
