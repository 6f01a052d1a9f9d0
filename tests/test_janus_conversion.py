"""Official folders of Janus-Pro become transformers' own, tensor by tensor."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import picture, tiny_janus, tiny_janus_processor

from uniedit_hf.cli import main
from uniedit_hf.models.janus import JanusForConditionalGeneration, JanusProcessor
from uniedit_hf.models.janus.conversion_janus import our_name
from uniedit_hf.models.loading import load_model
from uniedit_hf.pipeline import UniEditPipeline


# The other way round, written independently of what is tested.
OFFICIAL = (
    (r"^model\.vision_model\.(.*)\.self_attn\.projection_layer", r"model.vision_model.\1.self_attn.proj"),
    (r"^model\.vision_model\.encoder\.layers\.(\d+)\.self_attn", r"vision_model.vision_tower.blocks.\1.attn"),
    (r"^model\.vision_model\.encoder\.layers\.(\d+)\.layer_norm", r"vision_model.vision_tower.blocks.\1.norm"),
    (r"^model\.vision_model\.encoder\.layers", "vision_model.vision_tower.blocks"),
    (r"^model\.vision_model\.embeddings\.position_embedding\.weight", "vision_model.vision_tower.pos_embed"),
    (r"^model\.vision_model\.embeddings\.patch_embedding", "vision_model.vision_tower.patch_embed.proj"),
    (r"^model\.vision_model\.post_layernorm", "vision_model.vision_tower.norm"),
    (r"^model\.vqmodel\.(\w+)\.(up|down)", r"gen_vision_model.\1.conv_blocks"),
    (r"^model\.vqmodel", "gen_vision_model"),
    (r"^model\.generation_aligner\.fc1", "gen_aligner.layers.0"),
    (r"^model\.generation_aligner\.hidden_layers\.0", "gen_aligner.layers.2"),
    (r"^model\.aligner\.fc1", "aligner.layers.0"),
    (r"^model\.aligner\.hidden_layers\.0", "aligner.layers.2"),
    (r"^model\.generation_head\.proj_out", "gen_head.output_mlp_projector"),
    (r"^model\.generation_head", "gen_head"),
    (r"^model\.generation_embeddings", "gen_embed"),
    (r"^lm_head", "language_model.lm_head"),
    (r"^model\.language_model", "language_model.model"),
)  # fmt: skip


@dataclass
class Official:
    """An official folder and the model that is in it."""

    folder: object
    model: JanusForConditionalGeneration


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Heads of 64 channels, as in every SigLIP; the official configuration does not state them."""
    config = tiny_janus().config
    config.vision_config.hidden_size, config.vision_config.num_attention_heads = 64, 1
    model = JanusForConditionalGeneration(config).eval()
    folder = tmp_path_factory.mktemp("official")
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        for pattern, theirs in OFFICIAL:
            name = re.sub(pattern, theirs, name)
        if name.startswith("gen_vision_model"):
            name = name.replace(".block.", ".res.").replace(".mid.block_1.", ".mid.0.")
            name = name.replace(".mid.attn_1.", ".mid.1.").replace(".mid.block_2.", ".mid.2.")
        tensors[name] = tensor[None] if name.endswith("pos_embed") else tensor
    for name in [name for name in tensors if ".attn.q_proj." in name]:
        parts = [tensors.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
        tensors[name.replace("q_proj", "qkv")] = torch.cat(parts)
    tensors["vision_model.vision_tower.attn_pool.latent"] = torch.zeros(1)
    tensors["gen_vision_model.quantize.codebook_used"] = torch.zeros(9)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    text = config.text_config
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    stated = {name: getattr(text, name) for name in (*names, "vocab_size", "max_position_embeddings", "head_dim")}
    settings = {
        "model_type": "multi_modality",
        "language_config": {"model_type": "llama", "torch_dtype": "bfloat16", **stated},
        "vision_config": {"params": {"image_size": 32, "model_name": "siglip_tiny_patch8_32"}},
        "aligner_config": {"params": {"depth": 2, "input_dim": 64, "n_embed": 64}},
        "gen_aligner_config": {"params": {"depth": 2, "input_dim": 8, "n_embed": 64}},
        "gen_head_config": {"params": {"image_token_embed": 64, "image_token_size": 48, "n_embed": 64}},
        "gen_vision_config": {"params": {"image_token_size": 48, "n_embed": 8}},
    }
    (folder / "config.json").write_text(json.dumps(settings))
    images = {"image_size": 32, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "min_size": 4}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    tiny_janus_processor().tokenizer.save_pretrained(folder)
    return Official(folder, model)


def convert(source, target) -> None:
    main(["convert", "--input_dir", str(source), "--output_dir", str(target), "--to", "transformers"])


def test_every_tensor_arrives(official, tmp_path):
    convert(official.folder, tmp_path / "out")
    converted = JanusForConditionalGeneration.from_pretrained(tmp_path / "out")
    expected = official.model.state_dict()
    assert converted.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in converted.state_dict().items())
    processor = JanusProcessor.from_pretrained(tmp_path / "out")
    assert processor.use_default_system_prompt and processor.num_image_tokens == 16
    mine, theirs = UniEditPipeline.from_pretrained(tmp_path / "out"), UniEditPipeline(official.model, processor)
    requests = (picture(32, 32, 1), "paint the circle red")
    assert mine.edit(*requests, seed=1).tobytes() == theirs.edit(*requests, seed=1).tobytes()
    assert mine.model.generation_config.generation_kwargs == {"boi_token_id": processor.markers.begin}


def refused(act) -> str:
    with pytest.raises((OSError, ValueError)) as error:
        act()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_official_folder_says_how_to_convert_it(official):
    sentence = refused(lambda: load_model(str(official.folder)))
    assert f"uniedit convert --input_dir {official.folder} --output_dir FOLDER --to transformers" in sentence
    assert "deepseek-community" in sentence


def test_what_cannot_be_converted(official, tmp_path, capsys):
    from uniedit_hf.models.janus.conversion_janus import convert_official

    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for path in official.folder.iterdir():
        if path.suffix != ".safetensors":
            (pickled / path.name).write_bytes(path.read_bytes())
    assert "contains no weights, but safetensors" in refused(lambda: convert_official(pickled, tmp_path / "out"))
    (pickled / "pytorch_model.bin").write_bytes(b"anything")
    sentence = refused(lambda: convert_official(pickled, tmp_path / "out"))
    assert "contains only pytorch_model.bin, which can run code when it is opened" in sentence
    tensors = load_file(official.folder / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if n != "gen_embed.weight"}, pickled / "model.safetensors")
    sentence = refused(lambda: convert_official(pickled, tmp_path / "out"))
    assert "model.generation_embeddings.weight are missing, unknown or of a wrong shape" in sentence
    assert "is not empty: name a new folder" in refused(lambda: convert_official(pickled, pickled))
    with pytest.raises(ValueError, match="'mystery.weight' is not one of Janus-Pro's"):
        our_name("mystery.weight")
