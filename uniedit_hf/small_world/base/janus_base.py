"""Trains the small Janus base: a VQ autoencoder, then answers, drawings, plain edits and redrawing on easy-VQA.

    python -m uniedit_hf.small_world.base.janus_base --output_dir runs/small_world/janus

It has three stages, each of which can be resumed: the autoencoder; the encoder, which learns to predict the tokens of
its own squares and the content of the image; and the whole. It uses a plain loop instead of `UniEditTrainer`, because
the tokens of all images are computed once. The finished model is in `model`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusImageProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from uniedit_hf.arithmetic import cpu_arithmetic
from uniedit_hf.models.janus import JanusForConditionalGeneration, JanusProcessor
from uniedit_hf.randomness import python_random
from uniedit_hf.segments import ImageSegment, ImageTokens, Sample, TextSegment
from uniedit_hf.small_world.base.bagel_base import scene_loss, take_step
from uniedit_hf.small_world.base.samples import draw_pictures, draw_question
from uniedit_hf.small_world.base.scenes import as_tensor, real_scenes
from uniedit_hf.small_world.base.small_model import UNKNOWN
from uniedit_hf.small_world.base.vae import CONTRAST, batch, measure
from uniedit_hf.small_world.program import Keep
from uniedit_hf.small_world.questions import drawing_of
from uniedit_hf.small_world.scene import PALETTE, SHAPES, SIDE, Scene
from uniedit_hf.small_world.vocabulary import vocabulary
from uniedit_hf.small_world.wording import action_phrases
from uniedit_hf.training.ema import WeightAverage


PATCH, CODES = 8, 1024
TOKENS = (SIDE // PATCH) ** 2
MARKERS = ("<bos>", "<eos>", "<pad>", "<image_placeholder>", "<begin_of_image>", "<end_of_image>")
IMAGE_MARKERS = dict(zip(("image_token", "boi_token", "eoi_token"), MARKERS[3:]))
COMMITMENT, RESTART_EVERY, MEANS_ROUNDS = 0.25, 50, 10
CROPS, CODES_FROM = 0.4, 0.25  # the share of the steps after which features are replaced by codes
VIEWS = {("siglip",): 0.4, ("siglip", "vq"): 0.5, ("vq",): 0.1}
TEXT_DROPOUT, FULL_DROPOUT = 0.1, 0.05
PACKS, READING_BATCH = 4, 64
WARMUP, DECAY, AVERAGE_DECAY, SAVE_EVERY = 50, 0.4, 0.99, 50


def main() -> None:
    options = parse_options()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    model, processor = new_model(options.seed)
    model.set_attn_implementation("eager")  # on short rows in bf16 twice as fast as SDPA's kernel for the CPU
    images, scenes = real_scenes("train")
    train_autoencoder(model.model.vqmodel, images, scenes, options)
    pool = make_pool(model, options)
    learn_to_read(model, pool, options)
    train(model, processor, pool, options)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/small_world/janus"))
    parser.add_argument("--autoencoder_steps", type=int, default=2600)
    parser.add_argument("--reading_steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--samples", type=int, default=64, help="in a step: a quarter answers, a quarter drawings")
    parser.add_argument("--random_pictures", type=int, default=6000)
    parser.add_argument("--text_weight", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


# --- the model ------------------------------------------------------------------------------------------------------


def new_model(seed: int) -> tuple[JanusForConditionalGeneration, JanusProcessor]:
    """About four million parameters; both views of an image are 8 x 8 tokens."""
    ids = {token: index for index, token in enumerate([*MARKERS, UNKNOWN, "<user>", "<turn>", *vocabulary()])}
    processor = JanusProcessor(
        JanusImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        small_tokenizer(ids),
        num_image_tokens=TOKENS,
    )
    text = LlamaConfig(
        vocab_size=len(ids), hidden_size=192, intermediate_size=416, num_hidden_layers=5, num_attention_heads=6,
        max_position_embeddings=1024, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    vision = JanusVisionConfig(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=SIDE, patch_size=PATCH,
        projection_dim=192, num_image_tokens=TOKENS,
    )  # fmt: skip
    vq = JanusVQVAEConfig(
        num_embeddings=CODES, base_channels=64, channel_multiplier=(1, 1, 1, 1), num_res_blocks=1, latent_channels=64,
        projection_dim=192, image_token_embed_dim=192,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = JanusForConditionalGeneration(
        JanusConfig(text_config=text, vision_config=vision, vq_config=vq, image_token_id=3, tie_word_embeddings=False)
    )
    model.generation_config = GenerationConfig(
        bos_token_id=0, eos_token_id=1, pad_token_id=2, guidance_scale=1.5, generation_kwargs={"boi_token_id": 4}
    )
    return model, processor


def small_tokenizer(ids: dict[str, int]) -> PreTrainedTokenizerFast:
    """One token for every word and punctuation mark of the small world, and one for each turn of a conversation."""
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    names = [("<|User|>:", "<user>"), ("<|Assistant|>:", "<turn>")]
    tokenizer.normalizer = normalizers.Sequence(
        [*(normalizers.Replace(name, token) for name, token in names), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"<user>|<turn>|[a-z]+|[^\sa-z]"), behavior="removed", invert=True
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNKNOWN, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        extra_special_tokens=IMAGE_MARKERS, clean_up_tokenization_spaces=False,
    )  # fmt: skip


# --- the autoencoder ------------------------------------------------------------------------------------------------


def train_autoencoder(vqmodel, images: np.ndarray, scenes: list[Scene], options: argparse.Namespace) -> None:
    """Trains in place: reconstruction weighted by local contrast, nearest codes by direction, unused codes moved."""
    finished = options.output_dir / "autoencoder.pt"
    if finished.exists():
        vqmodel.load_state_dict(torch.load(finished, weights_only=True))
        return
    vqmodel.requires_grad_(True)
    optimizer = torch.optim.AdamW(vqmodel.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0)
    state_file, first = options.output_dir / "autoencoder_state.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        vqmodel.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    steps = options.autoencoder_steps
    used, begin = torch.zeros(CODES), int(CODES_FROM * steps)
    with tqdm(range(first, steps), initial=first, total=steps, desc="autoencoder", mininterval=10) as progress:
        for step in progress:
            set_rate(optimizer, step, steps, 2e-3)
            rng = random.Random(f"{options.seed}/{step}")
            if step == begin:
                vqmodel.quantize.embedding.weight.data.copy_(first_codes(vqmodel, images, scenes, rng))
            pixels = batch(images, scenes, step < CROPS * steps, rng)
            loss, features, tokens, psnr = autoencoder_loss(vqmodel, pixels, quantised=step >= begin)
            take_step(loss, optimizer, list(vqmodel.parameters()))
            used += torch.bincount(tokens, minlength=CODES)
            if step >= begin and (step - begin) % RESTART_EVERY == RESTART_EVERY - 1:
                if step < 0.7 * steps:
                    restart(vqmodel, used, features, rng)
                used.zero_()
            progress.set_postfix(psnr=f"{psnr:.1f}", refresh=False)
            if (step + 1) % SAVE_EVERY == 0:
                log(options.output_dir, {"part": "autoencoder", "step": step + 1, "psnr": round(psnr, 2)})
                parts = {"model": vqmodel.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
                torch.save(parts, state_file)
    vqmodel.requires_grad_(False)
    for weight in vqmodel.state_dict().values():
        weight.copy_(weight.half())  # in the saved precision, so that the finished model computes the same tokens
    torch.save(vqmodel.state_dict(), finished)


def autoencoder_loss(vqmodel, pixels: torch.Tensor, quantised: bool):
    """The loss, the features in fp32 (n, E), their tokens (n,) and the PSNR in decibels."""
    with cpu_arithmetic().autocast():
        encoded = vqmodel.quant_conv(vqmodel.encoder(pixels))
    flat = nn.functional.normalize(encoded.float().permute(0, 2, 3, 1).flatten(0, 2), dim=-1)
    codes = nn.functional.normalize(vqmodel.quantize.embedding.weight, dim=-1)
    tokens = (flat.detach() @ codes.detach().T).argmax(-1)
    chosen = codes[tokens]
    quantisation = (chosen - flat.detach()).square().sum(-1).mean()
    quantisation = quantisation + COMMITMENT * (flat - chosen.detach()).square().sum(-1).mean()
    count, _, height, width = encoded.shape
    passed = flat + (chosen - flat).detach() if quantised else flat
    passed = passed.view(count, height, width, -1).permute(0, 3, 1, 2)
    with cpu_arithmetic().autocast():
        decoded = vqmodel.decoder(vqmodel.post_quant_conv(passed))
    error = decoded.float() - pixels
    brightest = nn.functional.max_pool2d(pixels, 5, stride=1, padding=2)
    darkest = -nn.functional.max_pool2d(-pixels, 5, stride=1, padding=2)
    weight = 1 + CONTRAST * (brightest - darkest).amax(dim=1, keepdim=True)
    loss = (weight * (error.abs() + 2 * error.square())).mean() + quantised * quantisation
    return loss, flat.detach(), tokens, -10 * math.log10(error.square().mean().item() / 4)


@torch.no_grad()
def first_codes(vqmodel, images: np.ndarray, scenes: list[Scene], rng: random.Random) -> torch.Tensor:
    """Initial codes (CODES, E) among the features of images, found by k-means on the sphere."""
    encoded = [vqmodel.quant_conv(vqmodel.encoder(batch(images, scenes, False, rng))) for _ in range(100)]
    features = nn.functional.normalize(torch.cat(encoded).permute(0, 2, 3, 1).flatten(0, 2), dim=-1)
    codes = features[rng.sample(range(len(features)), CODES)]
    for _ in range(MEANS_ROUNDS):
        tokens = (features @ codes.T).argmax(-1)
        sums = torch.zeros_like(codes).index_add_(0, tokens, features)
        counts = torch.bincount(tokens, minlength=CODES)
        codes = torch.where(counts[:, None] > 0, nn.functional.normalize(sums, dim=-1), codes)
    return codes


@torch.no_grad()
def restart(vqmodel, used: torch.Tensor, features: torch.Tensor, rng: random.Random) -> None:
    """Moves unused codes to features, preferring those far from other codes."""
    unused = (used == 0).nonzero()[:, 0].tolist()
    codes = nn.functional.normalize(vqmodel.quantize.embedding.weight, dim=-1)
    distances = (1 - (features @ codes.T).amax(-1)).clamp(min=0)
    chosen = rng.choices(range(len(features)), distances.tolist(), k=len(unused))
    vqmodel.quantize.embedding.weight[unused] = features[chosen]


# --- training data ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """Images uint8 (n, 64, 64, 3) with their scenes and their tokens (n, 64); edits as (source, target, text);
    easy-VQA's questions and answers of the real images, which come first."""

    pictures: np.ndarray
    scenes: list[tuple[Scene, ...]]
    tokens: torch.Tensor
    edits: list[tuple[int, int, str]]
    questions: list[list[tuple[str, str]]]


def make_pool(model, options: argparse.Namespace) -> Pool:
    """The drawings of `draw_pictures` with their tokens, which are stored in a file."""
    drawn = draw_pictures(options.seed, options.random_pictures)
    kept = options.output_dir / "tokens.safetensors"
    if not kept.exists():
        parts = tqdm(range(0, len(drawn.pictures), 50), desc="tokens", mininterval=10)
        tokens = torch.cat([model.encode_images(as_tensor(drawn.pictures[start : start + 50])) for start in parts])
        report = measure(lambda pixels: torch.stack(model.round_trip(pixels)), *real_scenes("test"))
        report["codes_used"] = len(tokens.unique())
        (options.output_dir / "vae.json").write_text(json.dumps(report, indent=2) + "\n")
        save_file({"tokens": tokens.contiguous()}, kept)
    return Pool(drawn.pictures, drawn.scenes, load_file(kept)["tokens"], drawn.edits, drawn.questions)


class Draws:
    """Draws samples from a pool; `made_by` is the fingerprint of its tokens."""

    def __init__(self, pool: Pool, made_by: str):
        self.pool = pool
        self.made_by = made_by
        self.single = [index for index, scenes in enumerate(pool.scenes) if len(scenes) == 1]

    def sample(self, sort: str, name: str, rng: random.Random) -> Sample:
        """A sample of the sort `answer`, `drawing`, `edit` or `redrawing`."""
        if sort == "answer":
            return self._answer(name, rng)
        if sort == "drawing":
            image = rng.choice(self.single)
            prompt = rng.choice(drawing_of(self.pool.scenes[image][0]).prompts())
            return self._drawn(name, (), prompt, image, image, rng)
        if sort == "edit":
            source, target, text = rng.choice(self.pool.edits)
        else:
            source = target = rng.randrange(len(self.pool.scenes))
            text = f"{rng.choice(action_phrases(Keep()))}."
        views = rng.choices(list(VIEWS), list(VIEWS.values()))[0]
        return self._drawn(name, views, text, source, target, rng)

    def _answer(self, name: str, rng: random.Random) -> Sample:
        image, question, answer = draw_question(self.pool, self.single, rng, composed=0.6)
        segments = [self._view(image, "siglip"), TextSegment(question), TextSegment(answer, loss=True)]
        return Sample(segments, name)

    def _drawn(self, name: str, views, text: str, source: int, target: int, rng: random.Random) -> Sample:
        nothing = rng.random() < FULL_DROPOUT
        segments = [self._view(source, view, dropped=nothing) for view in views]
        segments.append(TextSegment(text, dropped=nothing or rng.random() < TEXT_DROPOUT))
        return Sample([*segments, self._view(target, "vq", loss=True)], name)

    def _view(self, image: int, view: str, **flags) -> ImageSegment:
        if view == "vq":
            tokens = ImageTokens(self.pool.tokens[image].tolist(), self.made_by)
            return ImageSegment(None, "vq", tokens=tokens, **flags)
        return ImageSegment(as_tensor(self.pool.pictures[image][None])[0], "siglip", **flags)


# --- training -------------------------------------------------------------------------------------------------------


def learn_to_read(model, pool: Pool, options: argparse.Namespace) -> None:
    """Supervises the encoder and the layers after it with heads that are discarded afterwards."""
    finished = options.output_dir / "reading.pt"
    if finished.exists():
        model.load_state_dict(torch.load(finished, weights_only=True))
        return
    torch.manual_seed(options.seed)
    size = model.config.text_config.hidden_size
    places, scene = nn.Linear(size, CODES), nn.Linear(size * TOKENS, len(SHAPES) + len(PALETTE) + 4)
    heads = [*places.parameters(), *scene.parameters()]
    parameters = [*model.model.vision_model.parameters(), *model.model.aligner.parameters(), *heads]
    optimizer = torch.optim.AdamW(parameters, lr=1.5e-3, weight_decay=0.01)
    with tqdm(range(options.reading_steps), desc="reading", mininterval=10) as progress:
        for step in progress:
            set_rate(optimizer, step, options.reading_steps, 1.5e-3)
            chosen = python_random(options.seed, "reading", step).sample(range(len(pool.scenes)), READING_BATCH)
            with cpu_arithmetic().autocast():
                seen = model.model.get_image_features(as_tensor(pool.pictures[chosen])).pooler_output
                squares, whole = places(seen), scene(seen.flatten(1))
            named = nn.functional.cross_entropy(squares.float().flatten(0, 1), pool.tokens[chosen].flatten())
            whole = scene_loss(whole.float(), [pool.scenes[index] for index in chosen])
            take_step(named + whole, optimizer, parameters)
            progress.set_postfix(tokens=f"{named.item():.3f}", scene=f"{whole.item():.3f}", refresh=False)
    torch.save(model.state_dict(), finished)


def train(model, processor, pool: Pool, options: argparse.Namespace) -> None:
    """Trains everything except the autoencoder in place, with checkpoints and an average of the weights; resumes
    automatically.
    """
    draws = Draws(pool, model.image_tokenizer)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    average, state_file, first, spent = WeightAverage(model, AVERAGE_DECAY), options.output_dir / "state.pt", 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.shadow, first, spent = state["average"], state["step"], state["seconds"]
    quarter, started = options.samples // 4, time.time() - spent
    sorts = ["answer"] * quarter + ["drawing"] * quarter + ["redrawing"] * (quarter // 3)
    sorts += ["edit"] * (options.samples - len(sorts))
    model.train()
    with tqdm(range(first, options.steps), initial=first, total=options.steps, mininterval=10) as progress:
        for step in progress:
            set_rate(optimizer, step, options.steps, 1e-3)
            rng = python_random(options.seed, "step", step)
            samples = [draws.sample(sort, f"{step}/{number}", rng) for number, sort in enumerate(sorts)]
            image, text = losses_of(model, processor, samples)
            take_step(image + options.text_weight * text, optimizer, parameters)
            average.update(model)
            figures = {"image": round(image.item(), 4), "text": round(text.item(), 4)}
            progress.set_postfix(figures, refresh=False)
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == options.steps:
                seconds = time.time() - started
                log(options.output_dir, {"part": "base", "step": step + 1, "seconds": round(seconds)} | figures)
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average.shadow}
                torch.save(state | {"step": step + 1, "seconds": seconds}, state_file)
    weights = {name: average.shadow.get(name, weight) for name, weight in model.state_dict().items()}
    model.save_pretrained(options.output_dir / "model", state_dict={k: v.half() for k, v in weights.items()})
    processor.save_pretrained(options.output_dir / "model")


def losses_of(model, processor, samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean image and text loss of a step. Samples of similar length share a pack: less padding."""
    samples = sorted(samples, key=processor.num_tokens)
    size = math.ceil(len(samples) / PACKS)
    parts = []
    for start in range(0, len(samples), size):
        features = dict(processor.pack(samples[start : start + size]))
        with cpu_arithmetic().autocast():
            parts.append(model(**{name: each for name, each in features.items() if not name.startswith("num_")}))
    image = sum(part.image_sum for part in parts) / sum(part.image_count for part in parts)
    return image, sum(part.text_sum for part in parts) / sum(part.text_count for part in parts)


def set_rate(optimizer, step: int, steps: int, peak: float) -> None:
    """Warm-up, a plateau, and a straight line to zero over the last `DECAY` of the steps."""
    factor = min((step + 1) / WARMUP, 1.0, (steps - step) / (DECAY * steps))
    for group in optimizer.param_groups:
        group["lr"] = peak * factor


def log(folder: Path, line: dict) -> None:
    with (folder / "training_log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
