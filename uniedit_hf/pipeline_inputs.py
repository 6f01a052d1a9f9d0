"""Checks the arguments of the pipeline: lists of requests, and settings for each."""

from __future__ import annotations

import secrets
from numbers import Integral
from typing import Any

from uniedit_hf.segments import check_characters


# Settings of diffusers' pipelines -> what to pass here.
OF_DIFFUSERS = {
    "generator": "give seed=7, or a list with a seed for each image",
    "num_inference_steps": "give num_timesteps, which counts both ends: 25 steps are num_timesteps=26",
    "guidance_scale": "give text_guidance_scale, and image_guidance_scale for the source",
    "true_cfg_scale": "give text_guidance_scale, and image_guidance_scale for the source",
    "height": "give size=(width, height)",
    "width": "give size=(width, height)",
    "num_images_per_prompt": "give a list with the prompt once for each image, and a list of seeds",
    "negative_prompt": "leave it out: this model is guided by a context without the text",
    "output_type": "leave it out: results are PIL images",
    "callback_on_step_end_tensor_inputs": "leave it out: the callback gets latents and a preview",
}


def check_names(settings: dict, known: set[str]) -> None:
    """Checks that the model has every setting; for those of diffusers the error gives our name.

    Raises:
        ValueError: If it does not have one.
    """
    for name in sorted(settings.keys() - known):
        if name in OF_DIFFUSERS:
            raise ValueError(f"There is no setting {name}: {OF_DIFFUSERS[name]}.")
        raise ValueError(f"There is no setting {name}: choose from {', '.join(sorted(known))}.")


def request_list(**columns) -> tuple[list[dict], bool]:
    """One dictionary per request; a single value applies to every request of a list."""
    lists = {name: value for name, value in columns.items() if isinstance(value, (list, tuple))}
    lengths = {name: len(value) for name, value in lists.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The lists differ in length ({lengths}): give one value for every request.")
    if lists and not max(lengths.values()):
        raise ValueError(f"There is nothing to do: the list for {' and '.join(lengths)} is empty.")
    count = max(lengths.values(), default=1)
    requests = [{name: lists[name][i] if name in lists else columns[name] for name in columns} for i in range(count)]
    return requests, bool(lists)


def given(settings: dict) -> dict:
    """The settings that are not None."""
    return {name: value for name, value in settings.items() if value is not None}


def one_for_each(value: Any, count: int, name: str) -> list:
    """A setting for every request: a list has one value for each, any other value applies to all."""
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} values for {count} requests: give one value, or one for each.")
    return value


def checked_size(size: Any) -> tuple[int, int]:
    """(width, height); raises ValueError otherwise."""
    if not (isinstance(size, (tuple, list)) and len(size) == 2 and all(isinstance(edge, int) for edge in size)):
        raise ValueError(f"size is {size!r}, but must be two whole numbers of pixels: (width, height).")
    return tuple(size)


def checked_seed(seed: Any) -> int:
    """The seed, random for None; raises ValueError otherwise."""
    if seed is None:
        return secrets.randbits(31)
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise ValueError(f"seed is {seed!r}, but must be a whole number such as 7, or None for a random one.")
    return int(seed)


def checked_text(text: Any, name: str) -> str:
    """The text; raises ValueError if it is empty or not valid Unicode."""
    if not isinstance(text, str) or not text.strip():
        found = "empty" if isinstance(text, str) else f"a {type(text).__name__}"
        raise ValueError(f"The {name} is {found}: write what the model should do.")
    check_characters(text, name)
    return text


def checked_settings(model, known: set[str], count: int, settings: dict) -> list:
    """The `ImageSettings` of every request, all checked before anything is drawn.

    Args:
        model: A model with `image_settings` and `check_image_settings`.
        known: Names of the possible settings.
        count: Number of requests.
        settings: One value for all requests, or a list with one for each.

    Raises:
        ValueError: A setting is unknown, or cannot be used; the message names the request.
    """
    check_names(settings, known)
    columns = {name: one_for_each(value, count, name) for name, value in settings.items()}
    requests = []
    for index in range(count):
        values = {name: column[index] for name, column in columns.items()}
        try:
            width, height = checked_size(values.pop("size"))
            seed = checked_seed(values["seed"])
            requests.append(model.image_settings(width=width, height=height, **values | {"seed": seed}))
            model.check_image_settings(requests[-1:])
        except ValueError as error:
            raise ValueError(f"Request {index}: {error}" if count > 1 else str(error)) from error
    model.check_image_settings(requests)
    return requests
