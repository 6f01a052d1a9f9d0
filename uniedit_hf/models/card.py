"""The card of a model that was loaded and is pushed under another name, for example with merged adapters."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import EntryNotFoundError


TAGS = ["uni-edit", "image-editing"]
KEPT = ("license", "license_name", "license_link", "datasets")  # metadata copied from the card of the loaded model

# The model's risks; also on the trainer's cards.
RISKS = (
    "The model can follow an instruction wrongly, answer wrongly, and draw people and things that look real and are "
    "not; edits of an image of a person need that person's consent. It has not learned anything that is missing "
    "from the base model and the training data."
)

TEMPLATE = """---
{{ card_data }}
---

# {{ model_name }}

{{ origin }}

{{ usage }}

## Limits and license

{{ risks }}

{% if license %}License: {{ license }}. {% endif %}The terms of the model that it was made from apply as well.
"""


def usage(model_id: str) -> str:
    """Example code that loads and uses a model, as Markdown."""
    return f'''```python
from uniedit_hf import UniEditPipeline
pipe = UniEditPipeline.from_pretrained("{model_id}")
pipe.edit(image, "If the shop sign names a color, repaint the door in it.")
```'''


def pushed_card(repo_id: str, loaded: str | None, base: str | None, adapted: bool, token=None) -> ModelCard:
    """The card of a model that is pushed unchanged.

    Args:
        repo_id: The repository to push to.
        loaded: The Hub id or folder that it was loaded from.
        base: The model named in its configuration: the same, or the base of the loaded adapters.
        adapted: Whether it still has adapters, so that only these are pushed.
        token: Token to read the card of the loaded model.
    """
    metadata = {} if loaded is None else _metadata(loaded, token)
    adapters = loaded if loaded != base else None
    base_id = base if base and not Path(base).exists() else None
    relation = {"base_model_relation": "adapter" if adapted else "finetune"} if base_id and adapters else {}
    data = ModelCardData(
        base_model=base_id,
        library_name="peft" if adapted else "transformers",
        pipeline_tag="image-to-image",
        tags=TAGS,
        **relation | metadata,
    )
    origin = _origin(base, adapters, adapted)
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        model_name=repo_id.split("/")[-1],
        usage=usage(repo_id),
        risks=RISKS,
        origin=origin[0].upper() + origin[1:],
        license=metadata.get("license"),
    )


def _origin(base: str | None, adapters: str | None, adapted: bool) -> str:
    """The origin of the model, in a sentence."""
    if adapters is None:
        return f"{_link(base)}, saved with uniedit_hf."
    if adapted:
        return f"The adapters of {_link(adapters)}, which are loaded together with their base, {_link(base)}."
    return (
        f"{_link(base)} with the adapters of {_link(adapters)} merged into its weights; their own card says how "
        "they were trained."
    )


def _link(name: str | None) -> str:
    """A Hub id as a link; local folders are not named."""
    if name is None or Path(name).exists():
        return "a unified multimodal model"
    return f"[{name}](https://huggingface.co/{name})"


def _metadata(name: str, token) -> dict:
    """The metadata that also applies to a copy, if there is a card."""
    if Path(name).is_dir() and not (Path(name) / "README.md").is_file():
        return {}
    try:
        card = ModelCard.load(str(Path(name) / "README.md") if Path(name).is_dir() else name, token=token)
    except EntryNotFoundError:
        return {}
    return {key: value for key in KEPT if (value := card.data.get(key)) is not None}
