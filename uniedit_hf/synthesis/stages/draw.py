"""Draws the target. If the correct result is the unchanged source, the source is copied and no call is made."""

from __future__ import annotations

import asyncio
from string import Template

from uniedit_hf.calls.caller import Caller
from uniedit_hf.calls.messages import EditRequest, EncodedImage, RowFailure, encoded, off_loop
from uniedit_hf.images import ImageError
from uniedit_hf.randomness import derive_seed
from uniedit_hf.synthesis.geometry import fitted, frame_for, size_to_ask, with_bars, without_bars
from uniedit_hf.synthesis.prompt_texts import prompt
from uniedit_hf.synthesis.records import Draft, Rejection
from uniedit_hf.synthesis.settings import Edit


STAGE = "edit"
LONGEST_REPLY = 2000  # characters shown of an unreadable reply; the cache has all of it
COPY = "copy"  # value of `editor` for targets that are the source


async def edit(draft: Draft, caller: Caller, settings: Edit, seed: int) -> Draft | Rejection:
    """The draft with its target, in the aspect ratio of the source unless it is a new image. The requested and the
    drawn size and the fitting operation are recorded.
    """
    if draft.unchanged:
        return draft.with_(target=draft.image, editor=COPY)
    source = frame = draft.image.size
    if draft.canvas == "scene":
        frame = frame_for(source, caller.backend.ratios, settings)
    bars = frame != source
    image = await asyncio.to_thread(_framed, draft.image, frame) if bars else draft.image
    size = size_to_ask(frame, settings)
    request = EditRequest(prompt_for(draft, bars), image, size, derive_seed(seed, draft.id, "edit") % 2**31)
    try:
        reply = await caller.reply(request)
    except RowFailure as failure:
        return draft.rejected(STAGE, "the call failed", str(failure))
    if reply.refusal is not None:
        return draft.rejected(STAGE, "the editor refused", reply.refusal)
    if reply.image is None:
        caller.set_unusable(request)
        detail = "it contains no image in a known form; it is kept."
        return draft.rejected(STAGE, "the reply cannot be read", detail, reply.text[:LONGEST_REPLY])
    try:
        result = await off_loop(EncodedImage.pixels, reply.image)
    except ImageError as error:
        caller.set_unusable(request)
        return draft.rejected(STAGE, "the editor gave no image", str(error))
    drawn, target, resized = result.size, reply.image, "none"
    if draft.canvas == "scene":
        fit = fitted(result, frame, settings)
        if fit is None:
            return draft.rejected(STAGE, "other proportions", f"{frame} was sent, the result is {drawn}.")
        result, resized = fit
        if bars:
            result, resized = without_bars(result, source, frame), "bars"
        target = target if resized == "none" else EncodedImage(await asyncio.to_thread(encoded, result))
    choices = {**draft.choices, "asked": _text(size), "drawn": _text(drawn), "resize": resized}
    return draft.with_(target=target, editor=reply.model, choices=choices)


def prompt_for(draft: Draft, bars: bool = False) -> str:
    """The editor's prompt. It contains the answer, unlike the instruction for training."""
    canvas = prompt("edit_scene" if draft.canvas == "scene" else "edit_new").text
    if bars:
        canvas = f"{canvas} {prompt('edit_bars').text}"
    return Template(prompt("edit").text).substitute(
        question=draft.question,
        answer=draft.short_answer,
        expected=draft.expected,
        instruction=draft.instruction,
        canvas=canvas,
    )


def _framed(image: EncodedImage, frame: tuple[int, int]) -> EncodedImage:
    return EncodedImage(encoded(with_bars(image.pixels(), frame)))


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
