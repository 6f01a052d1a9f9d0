"""The card of a tuned model: what it was made from, with which settings, and how to use it."""

from __future__ import annotations

from importlib.metadata import version

from huggingface_hub import ModelCard, ModelCardData

from .config import UniEditConfig


TEMPLATE = """---
{{ card_data }}
---

# {{ model_name }}

{% if base_model %}[{{ base_model }}](https://huggingface.co/{{ base_model }}){% else %}A unified multimodal model{% endif %} tuned on intelligent image editing
{%- for name in training_data %}{{ " with " if loop.first else ", " }}[{{ name }}](https://huggingface.co/datasets/{{ name }}){% endfor %}.
Made with uniedit_hf, an independent implementation of
[{{ paper_title }}](https://huggingface.co/papers/{{ paper_id }}).

```python
from uniedit_hf import UniEditPipeline
pipe = UniEditPipeline.from_pretrained("{{ model_id }}")
pipe.edit(image, "If the shop sign names a colour, repaint the door in it.")
```

## Training

| setting | value |
|---|---|
{% for name, value in settings.items() -%}
| {{ name }} | {{ value }} |
{% endfor %}
Versions: {{ versions | join(", ") }}.
"""  # noqa: E501  a paragraph is one line

SHOWN = (
    "recipe",
    "source_views",
    "text_dropout",
    "vit_dropout",
    "vae_dropout",
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
    datasets: list[str],
    tags: list[str],
    paper: dict[str, str],
    adapters: bool,
    steps: int,
) -> ModelCard:
    """A card in the style of TRL's.

    Args:
        args: Settings of the run.
        model_name: The heading.
        hub_model_id: What the example loads; the name if not given.
        base_model: Hub id of the model that was tuned, if it came from there.
        datasets: Hub ids of the training data, as far as they are known.
        tags: Of the model.
        paper: Its `title` and `id`.
        adapters: Whether only adapters were trained.
        steps: How many optimizer steps.
    """
    data = ModelCardData(
        base_model=base_model,
        datasets=datasets or None,
        library_name="peft" if adapters else "transformers",
        model_name=model_name,
        pipeline_tag="image-to-image",
        tags=sorted({"generated_from_trainer", *tags, *(["lora"] if adapters else [])}),
    )
    stored = args.to_dict()
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        model_name=model_name,
        model_id=hub_model_id or model_name,
        base_model=base_model,
        training_data=datasets,
        settings={"steps": steps, "packs in a step": args.packs_per_step} | {name: stored[name] for name in SHOWN},
        versions=[f"{name} {version(name)}" for name in PACKAGES],
        paper_title=paper["title"],
        paper_id=paper["id"],
    )
