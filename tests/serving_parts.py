"""A server in this process for tests, and what they ask it."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from openai import OpenAI
from PIL import Image
from tiny_models import FAMILIES, MARKERS, tiny_bagel, tiny_bagel_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from uniedit_hf import UniEditPipeline
from uniedit_hf.models.bagel import BagelProcessor
from uniedit_hf.serving.limits import Limits
from uniedit_hf.serving.server import Server, listen
from uniedit_hf.serving.server_settings import ServerSettings
from uniedit_hf.serving.service import Service


# settings of the pipeline that draw fast, by family
FAST = {"bagel": {"num_timesteps": 4}, "janus": {}}


def tiny_pipe(family: str = "bagel") -> UniEditPipeline:
    return UniEditPipeline(FAMILIES[family].model(), FAMILIES[family].processor())


class Served:
    """A running server.

    Args:
        service: Its parts.
        server: uvicorn's.
        port: Where it listens.
    """

    def __init__(self, service: Service, server: Server, port: int):
        self.service, self.server, self.port = service, server, port

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "none", **options) -> OpenAI:
        return OpenAI(api_key=key, base_url=f"{self.address}/v1", **{"max_retries": 0, "timeout": 120} | options)


@contextmanager
def served(pipe: UniEditPipeline, keys: tuple[str, ...] = (), **options) -> Iterator[Served]:
    """The server; `options` are fields of `ServerSettings` and of its limits."""
    limits = {name: options.pop(name) for name in set(options) & set(Limits.model_fields)}
    service = Service(pipe, ServerSettings(model="tiny", **options), Limits(**limits))
    server, listener = Server(service, keys), listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    assert until(lambda: server.started)
    try:
        yield Served(service, server, listener.getsockname()[1])
    finally:
        server.should_exit = True
        service.batcher.close()
        thread.join(30)
        assert not thread.is_alive()


def until(condition, seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(condition())


def png(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def data_url(image: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


def opened(b64_json: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64_json))).convert("RGB")).astype(int)


def same(found: np.ndarray, expected: Image.Image) -> bool:
    """Equal but for the last bit of a sum that was added in another order."""
    wanted = np.asarray(expected).astype(int)
    return found.shape == wanted.shape and int(abs(found - wanted).max()) <= 1


def byte_tokenizer(markers: list[str], **special) -> PreTrainedTokenizerFast:
    """A token for every byte, so that a tiny model can spell JSON."""
    vocabulary = {sign: index for index, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=markers, **special)


def spelling_pipe() -> UniEditPipeline:
    """A model whose tokens are bytes, so that it can write JSON."""
    tokenizer = byte_tokenizer(
        ["<|im_start|>", "<|vision_start|>", "<|vision_end|>"], eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    ids = dict(zip(MARKERS, tokenizer.convert_tokens_to_ids(list(MARKERS))))
    named = {
        "pad_token_id": ids["<|endoftext|>"],
        "bos_token_id": ids["<|im_start|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    text = tiny_bagel_config().text_config.to_dict() | {"vocab_size": 300, **named}
    markers = {"vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"]}
    model = tiny_bagel(text_config=text, **markers, **named)
    return UniEditPipeline(model, BagelProcessor(tiny_pipe().processor.image_processor, tokenizer))
