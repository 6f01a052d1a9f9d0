"""Janus-Pro against the plain way: a training step whose rows all go through both heads, and drawing with three
separate guidance passes.

    python benchmarks/janus.py

Every figure is measured in a process of its own: CPU seconds, and the most memory that the process held beyond what it
held before. The decoder is small; the sizes that decide the figures are those of the released model: 576 tokens an
image, 102,400
words, 16,384 codes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time

import psutil
import torch
from torch.nn import functional
from transformers import DynamicCache, JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

from uniedit_hf.models.janus import JanusForConditionalGeneration
from uniedit_hf.models.janus.generation_janus import JanusImageSettings
from uniedit_hf.models.janus.layout import SIGLIP, TEXT, VQ


WORDS, CODES, SIDE, TOKENS = 102_400, 16_384, 384, 576
INSTRUCTION = 30
MEASUREMENTS = ("step, supervised rows", "step, all rows", "drawing, one cache", "drawing, three passes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=MEASUREMENTS, help="measure this one here, and print JSON")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options)))
        return
    flags = ["--hidden", str(options.hidden), "--layers", str(options.layers), "--repeats", str(options.repeats)]
    print(f"hidden size {options.hidden}, {options.layers} layers, {torch.get_num_threads()} thread(s), fp32")
    for name in MEASUREMENTS:
        command = [sys.executable, __file__, *flags, "--only", name]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = json.loads(output.splitlines()[-1])
        print(f"{name:24} {found['seconds']:8.2f} s CPU {found['megabytes']:8.0f} MB")


def measure(options: argparse.Namespace) -> dict[str, float]:
    """The least CPU seconds of some repeats, and the most memory beyond that before."""
    torch.manual_seed(0)
    model = small_janus(options.hidden, options.layers)
    act = {
        "step, supervised rows": lambda: step(model, supervised_loss),
        "step, all rows": lambda: step(model, plain_loss),
        "drawing, one cache": lambda: draw(model),
        "drawing, three passes": lambda: draw_plainly(model),
    }[options.only]
    seconds = []
    with PeakMemory() as memory:
        for _ in range(options.repeats if options.only.startswith("step") else 1):
            begun = time.process_time()
            act()
            seconds.append(time.process_time() - begun)
    return {"seconds": min(seconds), "megabytes": memory.peak / 2**20}


class PeakMemory:
    """The most memory of this process while it is watched, beyond that before, in bytes."""

    def __enter__(self) -> PeakMemory:
        self.before, self.peak, self.ended = psutil.Process().memory_info().rss, 0, threading.Event()
        self.watcher = threading.Thread(target=self._watch)
        self.watcher.start()
        return self

    def _watch(self) -> None:
        while not self.ended.wait(0.005):
            self.peak = max(self.peak, psutil.Process().memory_info().rss - self.before)

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.watcher.join()


def small_janus(hidden: int, layers: int) -> JanusForConditionalGeneration:
    """The released model's geometry and vocabularies around a small decoder."""
    text = LlamaConfig(
        vocab_size=WORDS, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, max_position_embeddings=4096, pad_token_id=2,
    )  # fmt: skip
    vision = JanusVisionConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=1, image_size=SIDE, projection_dim=hidden
    )
    vq = JanusVQVAEConfig(
        num_embeddings=CODES, base_channels=32, channel_multiplier=(1, 1, 1, 1, 1), num_res_blocks=1,
        latent_channels=32, projection_dim=hidden, image_token_embed_dim=hidden,
    )  # fmt: skip
    config = JanusConfig(text_config=text, vision_config=vision, vq_config=vq, tie_word_embeddings=False)
    return JanusForConditionalGeneration(config).eval()


def edit_pack() -> dict[str, torch.Tensor]:
    """One edit: SigLIP and VQ view of the source, an instruction, the target; its tokens are stored."""
    kinds = [TEXT, *[SIGLIP] * TOKENS, TEXT, TEXT, *[VQ] * TOKENS, *[TEXT] * INSTRUCTION, TEXT, *[VQ] * TOKENS, TEXT]
    length = len(kinds)
    return {
        "input_ids": torch.randint(10, WORDS, (1, length)),
        "token_type_ids": torch.tensor(kinds)[None],
        "position_ids": torch.arange(length)[None],
        "labels": torch.full((1, length), -100),
        "siglip_images": torch.rand(1, 3, SIDE, SIDE) * 2 - 1,
        "vq_tokens": torch.randint(0, CODES, (2, TOKENS)),
        "vq_loss": torch.tensor([False, True]),
    }


def step(model, loss_of) -> None:
    """Forward and backward."""
    model.zero_grad()
    loss_of(model, edit_pack()).backward()


def supervised_loss(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Ours: heads on supervised rows."""
    losses = model(**batch)
    return losses.image + losses.text


def plain_loss(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The plain way: both heads on all rows, labels masked."""
    embeds = model.embed(batch["input_ids"], batch["token_type_ids"], batch["siglip_images"], batch["vq_tokens"])
    hidden = model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[0]
    image_labels = torch.full((hidden.shape[0],), -100)
    places = (batch["token_type_ids"][0] == VQ).nonzero()[-TOKENS:, 0]
    image_labels[places - 1] = batch["vq_tokens"][1]
    image = functional.cross_entropy(model.model.generation_head(hidden).float(), image_labels)
    text = functional.cross_entropy(model.lm_head(hidden).float(), batch["labels"][0], reduction="sum")
    return image + text


def contexts() -> dict[str, torch.Tensor]:
    """The three contexts of an edit, of equal length: all, without words, nothing."""
    batch = edit_pack()
    end = -TOKENS - 1  # behind the marker that begins the target
    ids, kinds = batch["input_ids"][0, :end], batch["token_type_ids"][0, :end]
    words = slice(-INSTRUCTION - 1, -1)
    wordless, nothing = ids.clone(), torch.full_like(ids, 2)
    wordless[words] = 2
    rows = torch.stack([ids, wordless, nothing])
    types = torch.stack([kinds, kinds, torch.full_like(kinds, TEXT)])
    images = batch["siglip_images"].expand(2, -1, -1, -1), batch["vq_tokens"][:1].expand(2, -1)
    return {
        "input_ids": rows,
        "token_type_ids": types,
        "attention_mask": torch.ones_like(rows),
        "siglip_images": images[0],
        "vq_tokens": images[1],
    }


def draw(model) -> torch.Tensor:
    """Ours: the contexts side by side in one cache."""
    settings = JanusImageSettings(SIDE, SIDE, text_guidance_scale=5.0, image_guidance_scale=2.0, temperature=0)
    return model.generate_tokens([settings], torch.tensor([[0, 1, 2]]), **contexts())


@torch.no_grad()
def draw_plainly(model) -> torch.Tensor:
    """The plain way: a pass and a cache for each context in every step."""
    given = contexts()
    embeds = model.embed(*(given[name] for name in ("input_ids", "token_type_ids", "siglip_images", "vq_tokens")))
    rows = [each[None] for each in embeds]
    caches = [DynamicCache(config=model.config.text_config) for _ in rows]
    tokens = torch.zeros(1, TOKENS, dtype=torch.long)
    for number in range(TOKENS):
        logits = []
        for row, cache in zip(rows, caches):
            hidden = model.model.language_model(inputs_embeds=row, past_key_values=cache).last_hidden_state[:, -1]
            logits.append(model.model.generation_head(hidden).float())
        full, wordless, nothing = logits
        guided = nothing + 2.0 * (wordless - nothing) + 5.0 * (full - wordless)
        tokens[:, number] = guided.argmax(-1)
        rows = [model.prepare_embeddings_for_image_generation(tokens[:, number, None])] * 3
    return tokens


if __name__ == "__main__":
    main()
