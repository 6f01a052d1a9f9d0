"""The card of a tuned model: what it was made from, with which settings, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from uniedit_hf.models.card import RISKS, usage

from .config import UniEditConfig
from .provenance import DataSource


TEMPLATE = """---
{{ card_data }}
---

# {{ model_name }}

{% if base_model %}[{{ base_model }}](https://huggingface.co/{{ base_model }}){% else %}A unified multimodal model{% endif %} tuned on intelligent image editing
{%- for source in sources %}{{ " with " if loop.first else ", " }}[{{ source.id }}]({{ source.link }}){% if source.revision %} at revision `{{ source.revision }}`{% endif %}{% endfor %}{% if adapters %}: LoRA adapters, which are loaded together with their base{% endif %}.
Made with uniedit_hf, an independent implementation of
[{{ paper_title }}](https://huggingface.co/papers/{{ paper_id }}).

{{ usage }}
{% if ema_decay %}
The average of the weights (decay {{ ema_decay }}) is in the folder `ema`: `from_pretrained("{{ model_id }}", subfolder="ema")`.
{% endif %}
{%- if abilities %}
## Base against tuned

| ability | base, % | tuned, % | difference, points | 95 % interval | items |
|---|---|---|---|---|---|
{% for name, row in abilities.items() -%}
| {{ name }} | {{ "%.1f" | format(100 * row.base) }} | {{ "%.1f" | format(100 * row.tuned) }} | {{ "%+.1f" | format(100 * row.difference) }} | {{ "%+.1f" | format(100 * row.ci95[0]) }} to {{ "%+.1f" | format(100 * row.ci95[1]) }} | {{ row.n }} |
{% endfor %}{% endif %}
## Training

| setting | value |
|---|---|
{% for name, value in settings.items() -%}
| {{ name }} | {{ value }} |
{% endfor %}{% if curve %}
![Loss over the steps]({{ curve }})
{% endif %}
Versions: {{ versions | join(", ") }}.

## Limits and license

{% if abilities %}Abilities that are not in the table were not measured.{% else %}This model was not evaluated: what
tuning gained or cost is unknown.{% endif %} {{ risks }}

{% if license %}License: {{ license }}. {% endif %}The terms of the base model{{ " and of the training data" if sources
}} apply as well.
"""  # noqa: E501  a paragraph is one line

SHOWN = (
    "recipe",
    "source_views",
    "text_dropout",
    "understanding_dropout",
    "drawing_dropout",
    "full_dropout",
    "image_loss_weight",
    "text_loss_weight",
    "freeze_und",
    "freeze_gen",
    "freeze_vit",
    "timestep_shift",
    "ema_decay",
    "max_tokens_per_pack",
    "learning_rate",
    "lr_scheduler_type",
    "max_grad_norm",
    "optim",
    "seed",
)
PACKAGES = ("uniedit_hf", "transformers", "torch", "diffusers", "datasets", "peft")


def model_card(
    args: UniEditConfig,
    *,
    model_name: str,
    hub_model_id: str | None,
    base_model: str | None,
    sources: Sequence[DataSource],
    tags: list[str],
    paper: dict[str, str],
    adapters: bool,
    steps: int,
    abilities: Mapping[str, Mapping[str, Any]],
    curve: str | None,
    metadata: Mapping[str, Any],
    measured: Mapping[str, str | None],
) -> ModelCard:
    """A card in the style of TRL's.

    Args:
        args: Settings of the run.
        model_name: The heading.
        hub_model_id: The model that the example loads; by default `model_name`.
        base_model: Hub id of the model that was tuned, if it came from there.
        sources: The training data, as far as it is known.
        tags: Tags of the model.
        paper: Its `title` and `id`.
        adapters: Whether only adapters were trained.
        steps: Number of optimizer steps.
        abilities: See `read_abilities`.
        curve: The file beside the card that shows the losses.
        metadata: Further fields of the metadata, such as `license`.
        measured: The choices and the speed of the run; `None` values are left out.
    """
    fields = {
        "base_model": base_model,
        "base_model_relation": ("adapter" if adapters else "finetune") if base_model else None,
        "datasets": [source.id for source in sources] or None,
        "library_name": "peft" if adapters else "transformers",
        "model_name": model_name,
        "pipeline_tag": "image-to-image",
        "tags": sorted({"generated_from_trainer", *tags, *(["lora"] if adapters else [])}),
    }
    stored = args.to_dict()
    return ModelCard.from_template(
        ModelCardData(**fields | metadata),
        template_str=TEMPLATE,
        model_name=model_name,
        model_id=hub_model_id or model_name,
        usage=usage(hub_model_id or model_name),
        risks=RISKS,
        base_model=base_model,
        sources=sources,
        adapters=adapters,
        abilities=abilities,
        ema_decay=args.ema_decay,
        curve=curve,
        license=metadata.get("license"),
        settings={"steps": steps, "packs in a step": args.packs_per_step}
        | {name: stored[name] for name in SHOWN}
        | {name: value for name, value in measured.items() if value is not None},
        versions=[f"{name} {version(name)}" for name in PACKAGES],
        paper_title=paper["title"],
        paper_id=paper["id"],
    )


def read_abilities(report: str | Path | Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The rows of a report that compares base and tuned model, by ability: shares `base` and `tuned`, `difference`
    with its interval `ci95`, and the number `n` of items.

    Args:
        report: A file such as the quickstart's `report.json`, or its contents; no rows if there is none.

    Raises:
        ValueError: If it has no such rows.
    """
    if report is None:
        return {}
    contents = report if isinstance(report, Mapping) else json.loads(Path(report).read_text())
    rows = contents.get("abilities") if isinstance(contents, Mapping) else None
    needed = {"base", "tuned", "difference", "ci95", "n"}
    if not isinstance(rows, Mapping) or not rows or not all(needed <= set(row) for row in rows.values()):
        name = "The report" if isinstance(report, Mapping) else f"The report {report}"
        raise ValueError(
            f"{name} does not compare a base with a tuned model: expected 'abilities', each with "
            f"{', '.join(sorted(needed))}, as in the quickstart's report.json."
        )
    return {name: dict(row) for name, row in rows.items()}
