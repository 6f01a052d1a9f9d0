"""The backends that run on this machine, each once for real, with tiny random models: a diffusers pipeline and a
vision-language model of transformers."""

from __future__ import annotations

import asyncio
import json

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)

from uniedit_hf.calls.messages import Answer, BackendError, ChatRequest, EditRequest, EncodedImage, encoded
from uniedit_hf.synthesis.backends.batches import Batches
from uniedit_hf.synthesis.backends.making import make_backend
from uniedit_hf.synthesis.settings import DiffusersEditor, TransformersChat


class Word(Answer):
    word: str


@pytest.fixture(scope="module")
def editor_folder(tmp_path_factory):
    """An InstructPix2Pix of a few thousand random weights, saved as diffusers saves it."""
    folder = tmp_path_factory.mktemp("editor")
    torch.manual_seed(0)
    words = ["<|startoftext|>", "<|endoftext|>", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = {word: number for number, word in enumerate([*words, *"abcdefghijklmnopqrstuvwxyz"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    text = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    channels = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    pipeline = StableDiffusionInstructPix2PixPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **channels
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=16,
            in_channels=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            **channels,
        ),  # fmt: skip
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory):
    """A Llava of a few thousand random weights, with a processor and a chat template."""
    folder = tmp_path_factory.mktemp("chat")
    torch.manual_seed(0)
    special = ["<unk>", "<pad>", "<image>", "<eos>"]
    vocabulary = {word: number for number, word in enumerate([*special, *'{}[]":,.abcdefghijklmnopqrstuvwxyz ?'])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>",
        extra_special_tokens=["<image>"],
    )  # fmt: skip
    template = (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'][:20] }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    processor = LlavaProcessor(
        SiglipImageProcessor(size={"height": 16, "width": 16}), fast, patch_size=8,
        vision_feature_select_strategy="full", chat_template=template, num_additional_image_tokens=0,
    )  # fmt: skip
    text = {
        "model_type": "llama", "vocab_size": len(vocabulary), "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 1,
        "eos_token_id": 3, "bos_token_id": None,
    }  # fmt: skip
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=2, vision_feature_select_strategy="full"
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    assert AutoProcessor.from_pretrained(folder).chat_template
    return folder


def picture(width: int, height: int, color: str) -> EncodedImage:
    return EncodedImage(encoded(Image.new("RGB", (width, height), color)))


def ask_all(backend, requests):
    """The replies, asked for at the same time, and the sizes of the batches they were made in."""
    sizes, work = [], backend.batches.work
    backend.batches.work = lambda batch: (sizes.append(len(batch)), work(batch))[1]

    async def ask():
        replies = await asyncio.gather(*map(backend.reply, requests))
        backend.batches.running = None  # of this event loop
        return replies

    try:
        return asyncio.run(ask()), sizes
    finally:
        backend.batches.work = work


def test_a_diffusers_pipeline_edits_in_batches(editor_folder):
    settings = DiffusersEditor(
        kind="diffusers", model=str(editor_folder), batch_size=4, arguments={"num_inference_steps": 2}
    )
    backend = make_backend("editor", settings)
    requests = [EditRequest(f"paint {n}", picture(24, 16, "red"), (48, 32), seed=n) for n in range(3)]
    requests += [EditRequest("paint it", picture(16, 24, "red"), (32, 48), seed=9)]
    replies, batches = ask_all(backend, requests)
    assert batches == [3, 1]  # images of one size together
    assert [reply.image.size for reply in replies] == [(48, 32)] * 3 + [(32, 48)]
    assert len({reply.image.data for reply in replies}) == 4
    alone, _ = ask_all(backend, requests[1:2])
    apart = torch.tensor(list(alone[0].image.pixels().tobytes())) - torch.tensor(
        list(replies[1].image.pixels().tobytes())
    )
    assert apart.abs().max() <= 2  # the seed decides, not the batch
    asyncio.run(backend.close())


def test_a_pipeline_is_loaded_in_the_dtype_asked_for(editor_folder):
    given = {"kind": "diffusers", "model": str(editor_folder), "arguments": {"num_inference_steps": 1}}
    backend = make_backend("editor", DiffusersEditor(**given, dtype="bfloat16"))
    assert backend.pipeline.unet.dtype == backend.pipeline.vae.dtype == torch.bfloat16
    replies, _ = ask_all(backend, [EditRequest("paint", picture(24, 16, "red"), (48, 32), seed=1)])
    assert replies[0].image.size == (48, 32)
    asyncio.run(backend.close())
    with pytest.raises(BackendError, match="float33"):
        make_backend("editor", DiffusersEditor(**given, dtype="float33"))


def test_a_vision_language_model_answers_in_batches(chat_folder):
    settings = TransformersChat(kind="transformers", model=str(chat_folder), batch_size=3, max_new_tokens=6)
    backend = make_backend("chat", settings)
    asked = (("what is it?", "red"), ("what?", "blue"), ("and this one?", "white"), ("why?", "black"))
    requests = [ChatRequest("look", text, Word, (picture(20, 30, color),)) for text, color in asked]
    replies, batches = ask_all(backend, requests)
    assert batches == [3, 1]
    assert all(isinstance(reply.text, str) and reply.tokens_in > 8 and reply.tokens_out > 0 for reply in replies)
    alone, _ = ask_all(backend, requests[1:2])
    assert alone[0] == replies[1]  # padding changes nothing
    two, _ = ask_all(backend, [ChatRequest("look", "same?", Word, (picture(9, 9, "red"), picture(40, 9, "blue")))])
    assert two[0].tokens_in > alone[0].tokens_in
    none = ChatRequest("look", "which label?", Word)
    mixed, batches = ask_all(backend, [none, requests[0], none, requests[1]])
    assert batches == [2, 2] and mixed[1] == replies[0] and mixed[0].tokens_in < mixed[1].tokens_in
    asyncio.run(backend.close())


@pytest.mark.parametrize("settings", [
    DiffusersEditor(kind="diffusers", model="/nowhere/model"),
    TransformersChat(kind="transformers", model="/nowhere/model"),
])  # fmt: skip
def test_an_unknown_model_is_one_sentence(settings):
    with pytest.raises(BackendError, match="cannot load '/nowhere/model'.*check model"):
        make_backend("mine", settings)


def test_an_argument_that_the_pipeline_lacks_is_named(editor_folder):
    settings = DiffusersEditor(kind="diffusers", model=str(editor_folder), arguments={"sharpness": 2})
    with pytest.raises(BackendError, match="takes no 'sharpness'"):
        make_backend("editor", settings)


def test_a_failed_batch_fails_its_requests_and_no_others():
    def work(batch):
        if "bad" in batch:
            raise OSError("out of memory")
        return [text.upper() for text in batch]

    async def ask():
        batches = Batches(work, 2, kind=lambda text: text == "bad")
        return await asyncio.gather(*map(batches.reply, ["a", "bad", "b", "c"]), return_exceptions=True)

    first, bad, *rest = asyncio.run(ask())
    assert (first, rest) == ("A", ["B", "C"]) and isinstance(bad, OSError)
