"""The report of a run, as an HTML page and as JSON. The page is one file with embedded images and curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from uniedit_hf.calls.messages import data_url, encoded
from uniedit_hf.files import write_text
from uniedit_hf.pages import render
from uniedit_hf.small_world.scoring import Score
from uniedit_hf.small_world.suite import PLAN, Output, score, write_items
from uniedit_hf.small_world.suite_items import SmallWorldItem, blind_answers

from .summary import mean_scores, summary, verdict


NOTE = (
    "This is a world of colored shapes, 64 pixels wide. The page shows the machinery and what tuning does in that "
    "world; it says nothing about the 7B model."
)
NUM_EXAMPLES = 12
COLORS = {"base": "#8a8f98", "tuned": "#2f6fdd", "long": "#1b3f86", "paper": "#d98b2b"}


def write_report(
    folder: Path,
    *,
    settings: dict[str, Any],
    data: dict[str, Any],
    losses: Mapping[str, Sequence[dict[str, float]]],
    items: Sequence[SmallWorldItem],
    outputs: Mapping[str, Sequence[Output]],
    scores: Mapping[str, Sequence[Sequence[Score]]],
    bounds: Mapping[str, Sequence[Score]],
    followed: Mapping[str, Mapping[str, float]],
    seconds: Mapping[str, float],
    resumed: bool = False,
) -> tuple[Path, str]:
    """Writes `items.jsonl`, `report.json` and `report.html` and returns the path of the page and the result in a
    sentence.

    Args:
        folder: The folder to write.
        settings: The settings of the run.
        data: Counts of the edits.
        losses: Loss curves by column.
        items: The test items.
        outputs: Outputs for the first seed, by column.
        scores: The scores of all items, by column and seed.
        bounds: Floor and ceiling of the edits.
        followed: The result of `dependence` for the tuned model of the first seed.
        seconds: Seconds of each part.
        resumed: Whether the run was stopped before, so that `seconds` are those of its last part.
    """
    of_seeds, scores = scores, {column: mean_scores(runs) for column, runs in scores.items()}
    write_items(folder / "items.jsonl", items, outputs, scores)
    questions = [item for item in items if item.ability == "understanding"]
    blind = [score(item, answer).right for item, answer in zip(questions, blind_answers(questions))]
    abilities = summary(items, scores, of_seeds)
    facts = {
        "verdict": verdict(abilities),
        "note": NOTE,
        "settings": settings,
        "abilities": abilities,
        "references": {
            "understanding, from the question alone": float(np.mean(blind)),
            **{f"editing, {name}": float(np.mean([s.right for s in each])) for name, each in bounds.items()},
        },
        "dependence": {name: dict(each) for name, each in followed.items()},
        "data": data,
        "losses": {name: list(each) for name, each in losses.items()},
        "seconds": dict(seconds),
        "resumed": resumed,
    }
    write_text(folder / "report.json", json.dumps(facts, indent=2) + "\n")
    page = render(
        "uniedit_hf.small_world.quickstart",
        "report.html.j2",
        **facts,
        bars=ability_bars(facts["abilities"], list(scores)),
        curve=loss_curves(losses),
        rows=_examples(items, outputs, {column: runs[0] for column, runs in of_seeds.items()}),
        columns=list(scores),
        planner="long" if "long" in scores else "tuned",
        minutes=sum(seconds.values()) / 60,
    )
    path = folder / "report.html"
    write_text(path, page)
    return path, facts["verdict"]


def _examples(items: Sequence[SmallWorldItem], outputs, scores) -> list[dict[str, Any]]:
    """The first intelligent edits, drawn from the ViT view at once and, by the best model, after a plan: nothing is
    picked."""
    planner = "long" if "long" in outputs else "tuned"
    chosen = [i for i, item in enumerate(items) if item.kind == "intelligent" and item.view == "vit"][:NUM_EXAMPLES]
    after_plan = [i for i, item in enumerate(items) if item.kind == "planned" and item.view == "vit"][:NUM_EXAMPLES]
    return [
        {
            "instruction": items[i].prompt,
            "plan": outputs[planner][j].info.get(PLAN, ""),
            "planned": data_url(encoded(outputs[planner][j])),
            "planned_right": scores[planner][j].right,
            "source": data_url(encoded(items[i].source)),
            "target": data_url(encoded(items[i].expected)),
            **{column: data_url(encoded(outputs[column][i])) for column in outputs},
            "right": {column: scores[column][i].right for column in outputs},
        }
        for i, j in zip(chosen, after_plan)
    ]


def ability_bars(abilities: Mapping[str, Any], columns: Sequence[str]) -> str:
    """The share of right items by ability and column with 95 % intervals, as an SVG element."""
    figure, axes = _figure(7, 2.8)
    width = 0.8 / len(columns)
    for offset, column in enumerate(columns):
        heights = np.array([row[column] for row in abilities.values()])
        intervals = np.array([row["interval"][column] for row in abilities.values()], dtype=float)
        places = np.arange(len(abilities)) + (offset - (len(columns) - 1) / 2) * width
        errors = np.abs(intervals.T - heights)
        axes.bar(places, heights, width * 0.92, yerr=errors, label=column, color=COLORS[column], capsize=3)
    axes.set_xticks(range(len(abilities)), list(abilities))
    axes.set_ylim(0, 1)
    axes.set_ylabel("right")
    axes.legend(frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))  # above the bars and intervals
    return _svg(figure)


def loss_curves(losses: Mapping[str, Sequence[dict[str, float]]]) -> str:
    """The losses over the steps as an SVG element."""
    figure, axes = _figure(7, 2.6)
    for name, each in losses.items():
        axes.plot([x["step"] for x in each], [x["loss"] for x in each], color=COLORS[name], linewidth=1.6, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("image loss")
    axes.legend(frameon=False)
    return _svg(figure)


def _figure(width: float, height: float):
    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return figure, axes


def _svg(figure) -> str:
    from matplotlib import pyplot

    buffer = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "uniedit"}):  # the same figure gives the same text
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
