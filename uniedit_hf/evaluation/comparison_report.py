"""A comparison as Markdown, JSON and one HTML file with the worst and the best examples side by side."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from uniedit_hf.calls.messages import data_url
from uniedit_hf.evaluation.comparison import extremes, readable
from uniedit_hf.evaluation.items import Item
from uniedit_hf.evaluation.running import picture_path
from uniedit_hf.files import write_text
from uniedit_hf.images import open_image
from uniedit_hf.pages import render


SIDE = 256
SMALL = 128  # pixels of an image: smaller ones are shown with visible pixels
GROUP_COLUMNS = ("difference", "95 % interval", "better, worse", "items")


def markdown(result: dict) -> str:
    """A table of the suite's numbers with their differences, or with the comparison in a sentence below it."""
    runs, groups = result["runs"], result.get("paired_groups") or {}
    columns = [result["suite"], *runs, *(GROUP_COLUMNS if groups else ())]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    names = dict.fromkeys([*groups, *(name for run in runs.values() for name in run["summary"])])
    for name in names if groups else sorted(names, key=lambda each: each != result["headline"]):
        cells = [name, *(_number(run["summary"].get(name)) for run in runs.values()), *_differences(groups, name)]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for name, run in runs.items():
        lines += [f"- {name}, {_short(result['models'][name])}: {_statuses(run['statuses'])}"]
        lines += [f"  - {run['problem']}"] if run.get("problem") else []
        lines += [f"  - {each['count']} {each['status']}: {_cell(each['reason'])}" for each in run.get("reasons", ())]
    if groups:  # the mean over all of them would mix abilities
        lines += ["", "Differences are means over the items, with a 95 % interval of a paired bootstrap."]
    elif paired := result.get("paired"):
        lines += ["", _sentence(paired)]
    return "\n".join([*lines, "", _provenance(result)]) + "\n"


def _differences(groups: dict, name: str) -> list[str]:
    """The cells of `GROUP_COLUMNS`, if there are groups; empty for a number that is not a group's."""
    if name not in groups:
        return [""] * len(GROUP_COLUMNS) if groups else []
    paired = groups[name]
    if not paired["items"]:
        return ["-", "-", "-", "0"]
    interval = "one item"
    if paired["items"] > 1:
        low, high = paired["interval"]
        interval = "all equal" if paired.get("interval_note") else f"{low:+.3f} to {high:+.3f}"
    return [f"{paired['difference']:+.3f}", interval, f"{paired['better']}, {paired['worse']}", str(paired["items"])]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _short(model: str) -> str:
    """A Hub id unchanged; only the last part of a folder, because cards are read on other machines."""
    return Path(model).name if Path(model).is_dir() else model


def _statuses(statuses: dict) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(statuses.items()))


def _cell(text: str) -> str:
    """Escapes foreign text for one line of Markdown and HTML."""
    return re.sub(r"[|<>`\[\]]", " ", " ".join(text.split()))[:160]


def _sentence(paired: dict) -> str:
    if not paired["items"]:
        return "No item has a value in both runs."
    if paired["items"] == 1:
        return f"On one item, which has no interval, the difference is {paired['difference']:+.3f}."
    (low, high), note = paired["interval"], paired.get("interval_note")
    return (
        f"Over {paired['items']} items the mean difference of items is {paired['difference']:+.3f} (95 % interval "
        f"{low:+.3f} to {high:+.3f}, paired bootstrap{f'; {note}' if note else ''}); {paired['better']} are better, "
        f"{paired['worse']} worse (exact sign test: p = {paired['sign_test']:.3g})."
    )


def _provenance(result: dict) -> str:
    judge = result.get("judge")
    seen = f"judged by {judge['model']}" if judge else f"detected by {result.get('detector')}"
    scored = f"scored as {result['compat']}'s script (--compat {result['compat']})" if result.get("compat") else ""
    parts = [f"{result['items']} items", f"seeds {result['seeds']}", f"preset {result['preset']}", seen, scored]
    return " ".join([", ".join(filter(None, parts)) + ".", *result.get("notes", ())])


def write(result: dict, items: Sequence[Item], folder: Path, runs: dict[str, Path]) -> Path:
    """Writes `NAME.md`, `NAME.json` and `NAME.html` into the folder and returns the last. NAME is "result", or
    "result.partial" if the folder contains a result with more marks, which is kept.
    """
    earlier = folder / "result.json"
    kept = earlier.is_file() and readable(json.loads(earlier.read_text(encoding="utf-8"))) > readable(result)
    name = "result.partial" if kept else "result"
    texts = {"json": json.dumps(result, indent=2), "md": markdown(result), "html": html(result, items, runs)}
    for ending, text in texts.items():
        write_text(folder / f"{name}.{ending}", text)
    return folder / f"{name}.html"


def html(result: dict, items: Sequence[Item], runs: dict[str, Path]) -> str:
    """One self-contained page; images are loaded one item at a time."""
    text = markdown(result).splitlines()
    sentences = [line.strip().removeprefix("- ") for line in text if line and not line.startswith("|")]
    if any(extremes(result)) and len(result["seeds"]) > 1:
        sentences.append(
            f"The images below are of seed {result['seeds'][0]}; the numbers next to them are means over all seeds."
        )
    by_name = {item.name: item for item in items}
    values, seed = (result.get("paired") or {}).get("by_item", {}), result["seeds"][0]
    return render(
        __package__,
        "comparison.html.j2",
        suite=result["suite"],
        table=[[cell.strip() for cell in line.strip("|").split("|")] for line in text if line.startswith("| ")],
        sentences=sentences,
        extremes=[
            (title, (_example(by_name[name], values[name], seed, runs) for name in names))
            for title, names in zip(("lost", "gained"), extremes(result))
            if names
        ],
    )


def _example(item: Item, values: Sequence[float], seed: int, runs: dict[str, Path]) -> dict:
    figures, answers = [_figure(source(), "source") for source in item.sources[:1]], []
    for (name, folder), value in zip(runs.items(), values):
        path = picture_path(folder, item, seed)
        if path.exists():
            figures.append(_figure(open_image(path), f"{name}: {value:.3f}"))
        else:  # the small world's questions have answers
            answers.append(f"{name}: {path.with_suffix('.txt').read_text(encoding='utf-8')}, {value:.3f}")
    return {"prompt": item.prompt, "figures": figures, "answers": answers}


def _figure(image: Image.Image, caption: str) -> dict[str, Any]:
    small, buffer = max(image.size) <= SMALL, io.BytesIO()
    image.thumbnail((SIDE, SIDE))
    kind = "png" if small else "jpeg"
    image.convert("RGB").save(buffer, kind, quality=85)
    return {"image": data_url(buffer.getvalue(), kind), "caption": caption, "small": small}
