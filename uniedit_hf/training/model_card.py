"""The card of a tuned model: what it was made from, with which settings, and how to use it."""

from __future__ import annotations

from importlib.metadata import version

from huggingface_hub import ModelCard, ModelCardData

from .config import UniEditConfig


TEMPLATE = """---
{{ card_data }}
---

# {{ model_name }}

{{ base }} tuned on intelligent image editing{{ data }} with uniedit_hf, an independent implementation of
[{{ paper_title }}]({{ paper_url }}).

```python
{{ usage }}
```

## Training

{{ settings }}

Versions: {{ versions }}.
"""

SHOWN = (
    "recipe",
    "source_views",
    "text_dropout",
    "vit_dropout",
    "vae_dropout",
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
    packs_per_step: int,
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
        packs_per_step: Packs in each of them.
    """
    data = ModelCardData(
        base_model=base_model,
        datasets=datasets or None,
        library_name="peft" if adapters else "transformers",
        model_name=model_name,
        pipeline_tag="image-to-image",
        tags=sorted({"generated_from_trainer", *tags, *(["lora"] if adapters else [])}),
    )
    rows = {"steps": steps, "packs in a step": packs_per_step} | {
        name: value.value if hasattr(value := vars(args)[name], "value") else value for name in SHOWN
    }
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        model_name=model_name,
        base=f"[{base_model}](https://huggingface.co/{base_model})" if base_model else "A BAGEL model",
        data=f" with {', '.join(f'[{name}](https://huggingface.co/datasets/{name})' for name in datasets)}"
        if datasets
        else "",
        usage=_usage(hub_model_id or model_name, base_model, adapters),
        settings="\n".join(
            ["| setting | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
        ),
        versions=", ".join(f"{name} {version(name)}" for name in PACKAGES),
        paper_title=paper["title"],
        paper_url=f"https://huggingface.co/papers/{paper['id']}",
    )


def _usage(model: str, base_model: str | None, adapters: bool) -> str:
    if not adapters:
        return "\n".join(
            [
                "from uniedit_hf import UniEditPipeline",
                f'pipe = UniEditPipeline.from_pretrained("{model}")',
                'pipe.edit(image, "If the shop sign names a colour, repaint the door in it.")',
            ]
        )
    return "\n".join(
        [
            "from uniedit_hf import UniEditPipeline",
            f'pipe = UniEditPipeline.from_pretrained("{base_model or "the base model"}")',
            f'pipe.model.load_adapter("{model}")',
        ]
    )
