"""GenEval and RISE as tasks of lmms-eval: prompts, scores and summaries are those of our suites.

Like lmms-eval's own tasks with judges, these read their settings from environment variables; every name has the prefix
`GENEVAL_` or `RISE_`:

    PROMPTS                              the prompt file, a path or hf://datasets/OWNER/NAME/FILE
    IMAGES                               RISE: the folder of its images
    API_KEY, BASE_URL, MODEL_NAME        RISE: the judge; without BASE_URL it is OpenAI's
    CLASS_NAMES, DETECTOR, CLIP          GenEval: object_names.txt; Mask2Former and CLIP other than the default
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Lock

from datasets import Dataset, DatasetDict
from lmms_eval.api.task import ConfigurableTask

from uniedit_hf.evaluation import running
from uniedit_hf.evaluation.items import Item, Outcome
from uniedit_hf.evaluation.journal import Journal
from uniedit_hf.evaluation.judge import Judge, JudgeSettings, stamp
from uniedit_hf.evaluation.suites import suite
from uniedit_hf.images import open_image


UNREADABLE = "unreadable"  # the share of images without a mark, which no mean includes


class SuiteTask(ConfigurableTask):
    """One of our suites; the judge or detector is created before anything is drawn."""

    name: str
    metrics: tuple[str, ...]

    def __init__(self):
        self.suite = suite(self.name)
        metrics = [
            {"metric": each, "aggregation": partial(number, self.name, each), "higher_is_better": each != UNREADABLE}
            for each in self.metrics
        ]
        config = {"task": self.name, "test_split": "test", "output_type": "generate_until", "metric_list": metrics,
                  "doc_to_text": "prompt", "doc_to_target": "prompt", "generation_kwargs": {},
                  "process_results": "the task's own"}  # fmt: skip
        super().__init__(config=config)

    def download(self, dataset_kwargs=None) -> None:
        self.items = {item.name: item for item in self.suite.read(self.need("PROMPTS"), self.setting("IMAGES"))}
        rows = [{"name": item.name, "prompt": item.prompt} for item in self.items.values()]
        self.dataset = self.dataset_no_image = DatasetDict({"test": Dataset.from_list(rows)})

    def doc_to_visual(self, doc: dict) -> list:
        return [source() for source in self.items[doc["name"]].sources]

    def process_results(self, doc: dict, results: Sequence[str], full_docs=None) -> dict[str, tuple[Item, Outcome]]:
        """Scores an image that `--model uniedit` made; lmms-eval calls this from several threads."""
        item = self.items[doc["name"]]
        row = (item, self.outcome(item, Path(json.loads(results[0])["images"][0])))
        return dict.fromkeys(self.metrics, row)

    def outcome(self, item: Item, picture: Path) -> Outcome:
        raise NotImplementedError

    def setting(self, name: str) -> str | None:
        return os.environ.get(f"{self.name.upper()}_{name}")

    def need(self, name: str) -> str:
        """Raises: ValueError: The variable is not set."""
        if value := self.setting(name):
            return value
        raise ValueError(f"The task {self.name} needs the environment variable {self.name.upper()}_{name}: set it.")


class GenEval(SuiteTask):
    """GenEval: drawings, scored by a detector."""

    name = "geneval"
    metrics = ("overall", "single_object", "two_object", "counting", "colors", "position", "color_attr")

    def __init__(self):
        from uniedit_hf.evaluation import detector

        names = self.need("CLASS_NAMES")
        self.detector = detector.Detector(self.setting("DETECTOR") or detector.DETECTOR, names)
        self.colors = detector.ColorReader(self.setting("CLIP") or detector.CLIP)
        super().__init__()

    def outcome(self, item: Item, picture: Path) -> Outcome:
        found = running.detected(self.detector, self.colors, open_image(picture), item.row)["found"]
        return self.suite.score(item, {"detector": found})


class Rise(SuiteTask):
    """RISE: edits, scored by a judge; its replies are stored in `replies.jsonl` next to the images."""

    name = "rise"
    metrics = (
        "overall accuracy", "overall percent", "temporal_reasoning accuracy", "causal_reasoning accuracy",
        "spatial_reasoning accuracy", "logical_reasoning accuracy", UNREADABLE,
    )  # fmt: skip

    def __init__(self):
        url = self.setting("BASE_URL") or JudgeSettings.base_url
        self.judge = Judge(JudgeSettings(self.need("MODEL_NAME"), url, "RISE_API_KEY"))
        self.journal, self.lock = None, Lock()
        super().__init__()

    def outcome(self, item: Item, picture: Path) -> Outcome:
        with self.lock:
            self.journal = self.journal or Journal(picture.parents[2] / "replies.jsonl")
        entries = {}
        for question in self.suite.questions(item, partial(open_image, picture), {}):
            about = f"{item.name}/{picture.stem}"
            self.judge.ask(about, question, stamp(picture), self.journal)
            entries[question.name] = self.judge.entry(about, question, self.journal)
        return running.outcome(self.suite, item, entries)


def number(name: str, metric: str, rows: Sequence[tuple[Item, Outcome]]) -> float:
    """A number of a suite's summary; NaN if no row contributes to it."""
    if metric == UNREADABLE:
        return sum(outcome.status != "ok" for _, outcome in rows) / len(rows)
    value = suite(name).summary(list(rows)).get(metric)
    return float("nan") if value is None else value
