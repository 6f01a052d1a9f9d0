"""Every layout gives the same model, conversion changes no byte, and what is wrong with a folder is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import picture, tiny_bagel, tiny_bagel_processor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    SiglipImageProcessor,
)
from transformers.core_model_loading import revert_weight_conversion

from uniedit_hf.models.bagel import (
    BagelConfig,
    BagelForConditionalGeneration,
    BagelImageProcessor,
    BagelModel,
    BagelProcessor,
)
from uniedit_hf.models.bagel.layouts_bagel import convert, to_official
from uniedit_hf.models.loading import load_processor
from uniedit_hf.pipeline import UniEditPipeline


FIXTURES = Path(__file__).parent / "fixtures"
FIXTURE = FIXTURES / "bagel_tiny"
CHECKPOINT = ("ema.safetensors", "ae.safetensors", "llm_config.json", "vit_config.json")


def load(folder: Path, **options) -> BagelForConditionalGeneration:
    return BagelForConditionalGeneration.from_pretrained(folder, **options)


def assert_same_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    """The fixture's weights under our names, by the mapping of single names alone."""
    stored = load_file(FIXTURE / "ema.safetensors") | load_file(FIXTURE / "ae.safetensors")
    model = load(FIXTURE)
    return {name: stored[to_official(name)].view(x.shape) for name, x in model.state_dict().items()}


@pytest.fixture
def official(tmp_path) -> Path:
    """A copy of the fixture's checkpoint alone."""
    folder = tmp_path / "official"
    folder.mkdir()
    for name in CHECKPOINT:
        shutil.copy(FIXTURE / name, folder)
    return folder


@pytest.fixture(scope="module")
def saved_fixture(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fixture") / "ours"
    load(FIXTURE).save_pretrained(folder)
    return folder


@pytest.fixture
def ours(saved_fixture, tmp_path) -> Path:
    """The fixture as we save it."""
    return Path(shutil.copytree(saved_fixture, tmp_path / "ours"))


# ---- the released model


def test_full_size_maps_one_to_one_onto_the_release():
    with torch.device("meta"):
        model = BagelForConditionalGeneration(BagelConfig())
    saved = revert_weight_conversion(model, model.state_dict())
    found = {name: list(tensor.shape) for name, tensor in saved.items()}
    release = json.loads((FIXTURES / "bagel_7b_mot_keys.json").read_text())
    listed = {name: shape for file in release.values() for name, shape in file.items()}
    assert found == listed
    assert len(release["ema.safetensors"]) == 1223 and len(release["ae.safetensors"]) == 244
    vae = sum(tensor.numel() for name, tensor in model.named_parameters() if name.startswith("vae."))
    assert (sum(tensor.numel() for tensor in model.parameters()) - vae, vae) == (14_607_260_128, 83_819_683)
    assert {to_official(name) for name in model.state_dict()} == set(listed)


def test_a_model_from_a_configuration_has_the_released_position_tables(expected):
    config = load(FIXTURE).config
    for name, table in BagelForConditionalGeneration(config).state_dict().items():
        if name.endswith("pos_embed"):
            torch.testing.assert_close(table, expected[name], rtol=0, atol=1e-6)


# ---- layouts in


def as_shards(folder: Path, count: int = 3, index: bool = False) -> Path:
    """Splits `ema.safetensors` as the Uni-Edit release is split."""
    tensors = load_file(folder / "ema.safetensors")
    (folder / "ema.safetensors").unlink()
    weight_map = {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[number::count]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    if index:
        write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: dict[str, str], name: str = "model.safetensors.index.json") -> None:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def with_released_index(folder: Path) -> Path:
    """The released folder has an index file that names its two weight files."""
    files = ("ema.safetensors", "ae.safetensors")
    write_index(folder, {name: file for file in files for name in load_file(folder / file)})
    return folder


def with_shards_of_ema(folder: Path) -> Path:
    tensors = load_file(folder / "ema.safetensors")
    (folder / "ema.safetensors").unlink()
    weight_map = {}
    for number in range(2):
        file = f"ema-{number + 1:05d}-of-00002.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[number::2]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_index(folder, weight_map, "ema.safetensors.index.json")
    return folder


def with_nested_config(folder: Path, keep_files: bool = True) -> Path:
    """The official `config.json` holds the other two."""
    settings = {
        "architectures": ["BagelForConditionalGeneration"],
        "model_type": "bagel",
        "llm_config": json.loads((folder / "llm_config.json").read_text()),
        "vit_config": json.loads((folder / "vit_config.json").read_text()),
        "vae_config": {"z_channels": 16, "downsample": 8},
        "latent_patch_size": 2,
        "max_latent_size": 8,
        "vit_max_num_patch_per_side": 10,
        "connector_act": "gelu_pytorch_tanh",
        "interpolate_pos": False,
        "timestep_shift": 1.0,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    if not keep_files:
        (folder / "llm_config.json").unlink()
        (folder / "vit_config.json").unlink()
    return folder


def as_ours(folder: Path, max_shard_size: str = "5GB") -> Path:
    saved = folder.with_name("saved")
    load(folder).save_pretrained(saved, max_shard_size=max_shard_size)
    return saved


def converted(folder: Path, max_shard_size: str = "5GB") -> Path:
    output = folder.with_name("converted")
    convert(folder, output, to="transformers", max_shard_size=max_shard_size)
    return output


LAYOUTS = {
    "official": lambda folder: folder,
    "released index": with_released_index,
    "nested config": with_nested_config,
    "nested config alone": lambda folder: with_nested_config(folder, keep_files=False),
    "nested config, index": lambda folder: with_released_index(with_nested_config(folder)),
    "shards": as_shards,
    "shards, nested config alone": lambda folder: with_nested_config(as_shards(folder), keep_files=False),
    "shards with index": lambda folder: as_shards(folder, index=True),
    "shards of ema": with_shards_of_ema,
    "ours": as_ours,
    "ours, from shards": lambda folder: as_ours(as_shards(folder, index=True)),
    "ours, in shards": lambda folder: as_ours(folder, max_shard_size="1MB"),
    "ours, converted": converted,
    "ours, converted to shards": lambda folder: converted(folder, max_shard_size="1MB"),
    "ours, converted from shards with index": lambda folder: converted(as_shards(folder, index=True)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_model(official, expected, layout):
    folder = LAYOUTS[layout](official)
    if "in shards" in layout or "to shards" in layout:
        assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    model = load(folder)
    assert_same_tensors(model.state_dict(), expected)
    config = model.config
    assert config.vision_config.num_hidden_layers == 3 and config.vision_config.patches_per_side == 10
    assert config.max_latent_size == 8 and config.vae_config.channel_multipliers == [1, 1, 1, 1]
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name in expected if name.startswith("vae.") or name.endswith(".pos_embed")}


def test_identical_outputs(official, ours):
    """To the last bit, wherever in its file a tensor begins."""
    folders = [official, ours]
    patches, grids = torch.randn(6, 588), torch.tensor([[2, 3]])
    types = torch.tensor([[1, *[2] * 6, 1, 1, 1]])
    context = {"input_ids": torch.tensor([[5, *[0] * 6, 6, 7, 8]]), "token_type_ids": types}
    with torch.no_grad():
        logits = [load(each)(**context, vit_patches=patches, vit_grids=grids).logits for each in folders]
    assert torch.equal(*logits)


def test_loading_info_and_the_base_model(official, expected):
    model, info = load(official, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    base = BagelModel.from_pretrained(official)
    inner = {name.removeprefix("model."): x for name, x in expected.items() if name.startswith("model.")}
    assert_same_tensors(base.state_dict(), inner)


def test_a_folder_may_be_saved_onto_itself(ours, expected):
    """Weights may still be mapped from the file that is replaced."""
    load(ours).save_pretrained(ours)
    assert_same_tensors(load(ours).state_dict(), expected)


def test_timestep_shift_and_scale_survive(official):
    nested = with_nested_config(official)
    settings = json.loads((nested / "config.json").read_text())
    settings |= {"timestep_shift": 3.0, "vae_config": {"scale_factor": 0.5, "shift_factor": 0.25}}
    (nested / "config.json").write_text(json.dumps(settings))
    for folder in (nested, as_ours(nested)):
        config = load(folder).config
        assert config.timestep_shift == 3.0
        assert (config.vae_config.scaling_factor, config.vae_config.shift_factor) == (0.5, 0.25)


# ---- layouts out


def stored_bytes(folder: Path) -> dict[str, tuple[torch.dtype, bytes]]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                tensor = tensors.get_tensor(name)
                found[name] = (tensor.dtype, tuple(tensor.shape), tensor.flatten().view(torch.uint8).numpy().tobytes())
    return found


@pytest.mark.parametrize(("dtype", "max_shard_size"), [(torch.float32, "5GB"), (torch.bfloat16, "1MB")])
def test_there_and_back_changes_no_byte(official, tmp_path, dtype, max_shard_size):
    """With weights in bf16 the autoencoder stays in fp32, as in the release."""
    weights = load_file(official / "ema.safetensors")
    save_file({name: tensor.to(dtype) for name, tensor in weights.items()}, official / "ema.safetensors")
    there, back = tmp_path / "there", tmp_path / "back"
    convert(official, there, to="transformers", max_shard_size=max_shard_size)
    assert not (there / "ema.safetensors").exists() and not (there / "ae.safetensors").exists()
    convert(there, back, to="official")
    assert stored_bytes(there) == stored_bytes(official) == stored_bytes(back)
    for file in ("ema.safetensors", "ae.safetensors"):
        assert load_file(back / file).keys() == load_file(official / file).keys()
    assert_same_tensors(load(back, dtype=dtype).state_dict(), load(official, dtype=dtype).state_dict())


def test_converting_to_the_same_layout(official, tmp_path):
    convert(official, tmp_path / "official2", to="official")
    convert(official, tmp_path / "ours", to="transformers")
    convert(tmp_path / "ours", tmp_path / "ours2", to="transformers", max_shard_size="1MB")
    assert stored_bytes(tmp_path / "official2") == stored_bytes(official) == stored_bytes(tmp_path / "ours2")


def test_an_export_says_what_servers_read(tmp_path):
    """The ViT's size for SigLIP's image processor, and nothing that would be read in its place; our own sizes come
    back from it."""
    pipe = UniEditPipeline(tiny_bagel(), tiny_bagel_processor())
    pipe.save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "export", to="official")
    names = {path.name for path in (tmp_path / "export").iterdir()}
    assert "processor_config.json" not in names and not any(name.endswith(".index.json") for name in names)
    assert {name for name in names if name.endswith(".safetensors")} == {"ema.safetensors", "ae.safetensors"}
    siglip = SiglipImageProcessor.from_pretrained(tmp_path / "export")
    assert (siglip.size["height"], siglip.size["width"]) == (84, 84)
    pixels = siglip(picture(84, 84), return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(pixels, pipe.processor.image_processor.prepare(picture(84, 84), "vit"), atol=1e-6)
    config, llm = (json.loads((tmp_path / "export" / name).read_text()) for name in ("config.json", "llm_config.json"))
    assert config["architectures"] == ["BagelForConditionalGeneration"] and config["model_type"] == "bagel"
    assert config["vae_config"]["z_channels"] == 16 and config["vae_config"]["downsample"] == 8
    assert (config["max_latent_size"], config["latent_patch_size"], config["vit_max_num_patch_per_side"]) == (8, 2, 6)
    assert config["visual_gen"] and config["visual_und"] and not config["interpolate_pos"]
    assert llm["qk_norm"] is True and llm["tie_word_embeddings"] is False
    convert(tmp_path / "export", tmp_path / "back", to="transformers")
    for folder in ("export", "back"):
        found = UniEditPipeline.from_pretrained(tmp_path / folder).processor.image_processor
        assert found.to_dict() == pipe.processor.image_processor.to_dict()
    assert not (tmp_path / "back" / "preprocessor_config.json").exists()


def test_the_size_that_a_release_states_for_the_vit_is_taken(official):
    (official / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 56, "width": 56}}))
    tiny_bagel_processor().tokenizer.save_pretrained(official)
    assert load_processor(official, BagelConfig.from_pretrained(official)).image_processor.vit_size == {
        "longest_edge": 56,
        "shortest_edge": 56,
    }


def test_convert_refuses_what_is_no_checkpoint(official, tmp_path):
    output = tmp_path / "output"
    with pytest.raises(ValueError, match="to is 'offical': choose 'official' or 'transformers'"):
        convert(official, output, to="offical")
    with pytest.raises(OSError, match="nowhere is not a local folder"):
        convert(tmp_path / "nowhere", output, to="transformers")
    with pytest.raises(OSError, match="official is not empty: name a new folder"):
        convert(FIXTURE, official, to="transformers")
    change_weights(official, lambda weights: weights.pop("connector.fc1.bias"))
    with pytest.raises(ValueError, match="connector.fc1.bias"):
        convert(official, output, to="transformers")
    assert not output.exists()


def test_what_we_save_carries_official_names(ours):
    stored = load_file(FIXTURE / "ema.safetensors") | load_file(FIXTURE / "ae.safetensors")
    assert_same_tensors(load_file(ours / "model.safetensors"), stored)
    assert "transformers_weights" not in json.loads((ours / "config.json").read_text())


# ---- what is wrong with a folder


def change_weights(folder: Path, change, file: str = "ema.safetensors") -> None:
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, metadata={"format": "pt"})


def without(name: str):
    return lambda tensors: tensors.pop(name)


def with_tensor(name: str, *shape: int):
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


LAST_NORM = "language_model.model.norm.weight"
DECODER = "decoder.conv_out.bias"
DAMAGES = {
    "missing": (without(LAST_NORM), "ema.safetensors", f"{LAST_NORM} is missing from "),
    "missing vae": (without(DECODER), "ae.safetensors", f"{DECODER} is missing from "),
    "missing attention": (
        without("decoder.mid.attn_1.q.weight"),
        "ae.safetensors",
        "decoder.mid.attn_1.q.weight is missing from ",
    ),
    "missing expert": (
        without("language_model.model.layers.2.mlp_moe_gen.up_proj.weight"),
        "ema.safetensors",
        "language_model.model.layers.2.mlp_moe_gen.up_proj.weight is missing",
    ),
    "extra": (with_tensor("mystery.weight", 2), "ema.safetensors", "mystery.weight is not known to the model"),
    "extra layer": (
        with_tensor("language_model.model.layers.3.input_layernorm.weight", 64),
        "ema.safetensors",
        "language_model.model.layers.3.input_layernorm.weight is not known to the model",
    ),
    "shape": (
        with_tensor(LAST_NORM, 32),
        "ema.safetensors",
        rf"{LAST_NORM} in .* has shape \(32,\), but the configuration asks for \(64,\)",
    ),
    "shape of attention": (
        with_tensor("encoder.mid.attn_1.k.weight", 16, 32, 1, 1),
        "ae.safetensors",
        r"encoder.mid.attn_1.k.weight in .* has shape \(16, 32.*\), but the configuration asks for \(32, 32.*\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_names_the_tensor(official, damage):
    change, file, message = DAMAGES[damage]
    change_weights(official, change, file)
    with pytest.raises(ValueError, match=message) as error:
        load(official)
    assert str(official) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["missing vae", "extra", "shape"])
def test_a_damaged_checkpoint_of_ours_names_the_tensor(ours, damage):
    change, _, message = DAMAGES[damage]
    change_weights(ours, change, "model.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        load(ours)
    assert str(ours) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("index", "missing"), [(False, 1), (False, 3), (True, 2)])
def test_a_missing_shard(official, index, missing):
    folder = as_shards(official, index=index)
    name = f"model-{missing:05d}-of-00003.safetensors"
    (folder / name).unlink()
    with pytest.raises(OSError, match=name):
        load(folder)


def test_a_missing_shard_of_ours(official):
    folder = as_ours(official, max_shard_size="1MB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(OSError, match=shard.name):
        load(folder)


@pytest.mark.parametrize("make", [lambda folder: folder, as_shards, with_nested_config])
def test_no_autoencoder(official, make):
    folder = make(official)
    (folder / "ae.safetensors").unlink()
    with pytest.raises(OSError, match="expected ae.safetensors next to the weights") as error:
        load(folder)
    assert str(folder) in str(error.value)


def test_no_weights(official):
    (official / "ema.safetensors").unlink()
    with pytest.raises(OSError, match="is not a BAGEL checkpoint: expected .* ema.safetensors or model-"):
        load(official)


@pytest.mark.parametrize("entry", [load, UniEditPipeline.from_pretrained, BagelConfig.from_pretrained])
@pytest.mark.parametrize("content", [None, "notes.txt"])
def test_a_folder_that_is_no_checkpoint(tmp_path, entry, content):
    if content:
        (tmp_path / content).write_text("nothing here")
    with pytest.raises(OSError, match=f"is not a BAGEL checkpoint.*found .*{content or 'an empty folder'}") as error:
        entry(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("file", ["ema.safetensors", "ae.safetensors"])
@pytest.mark.parametrize("size", [0, 5, 1000, 200_000])
def test_a_truncated_file(official, file, size):
    content = (official / file).read_bytes()
    (official / file).write_bytes(content[:size])
    with pytest.raises(OSError, match=f"{file} is not a complete safetensors file"):
        load(official)


def test_a_truncated_file_of_ours(ours):
    file = ours / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(OSError, match="model.safetensors is not a complete safetensors file"):
        load(ours)


def test_a_truncated_shard_of_ours(official):
    folder = as_ours(official, "1MB")
    file = sorted(folder.glob("model*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(OSError, match=f"{file.name} is not a complete safetensors file"):
        load(folder)


def test_no_json(official):
    (official / "llm_config.json").write_text("{")
    with pytest.raises(ValueError, match="llm_config.json is not valid JSON"):
        load(official)


def test_interpolated_positions(official):
    folder = with_nested_config(official)
    settings = json.loads((folder / "config.json").read_text()) | {"interpolate_pos": True}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="interpolate_pos"):
        load(folder)


# ---- what else belongs to a checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny_bagel().save_pretrained(folder)
    tiny_bagel_processor().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("auto", "expected_class"),
    [
        (AutoConfig, BagelConfig),
        (AutoModel, BagelModel),
        (AutoModelForImageTextToText, BagelForConditionalGeneration),
        (AutoModelForCausalLM, BagelForConditionalGeneration),
        (AutoModelForMultimodalLM, BagelForConditionalGeneration),
        (AutoProcessor, BagelProcessor),
        (AutoImageProcessor, BagelImageProcessor),
    ],
)
def test_auto_classes(saved, auto, expected_class):
    assert type(auto.from_pretrained(saved)) is expected_class


def test_auto_class_on_an_official_folder(official, expected):
    model = AutoModelForImageTextToText.from_pretrained(with_nested_config(official))
    assert_same_tensors(model.state_dict(), expected)


def test_averaged_weights_in_a_subfolder(saved, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "run"))
    averaged = tiny_bagel(seed=1)
    averaged.save_pretrained(folder / "ema")
    assert_same_tensors(load(folder, subfolder="ema").state_dict(), averaged.state_dict())
    pipe = UniEditPipeline.from_pretrained(folder, subfolder="ema")
    assert_same_tensors(pipe.model.state_dict(), averaged.state_dict())
    assert pipe.answer(picture(), "what is this", max_new_tokens=3) is not None


def test_official_weights_in_a_subfolder(official, tmp_path, expected):
    nested = tmp_path / "nested"
    nested.mkdir()
    official.rename(nested / "ema")
    assert_same_tensors(load(nested, subfolder="ema").state_dict(), expected)


def test_generation_config(saved, tmp_path, official):
    model = load(saved)
    ids = tiny_bagel_processor()
    assert model.generation_config.eos_token_id == ids.eos_id
    assert model.generation_config.bos_token_id == ids.bos_id
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(tmp_path / "again")
    assert load(tmp_path / "again").generation_config.max_new_tokens == 7
    # an official folder has none, and marker ids come from the tokenizer by name
    ids.tokenizer.save_pretrained(official)
    generation_config = load(official).generation_config
    assert (
        generation_config.eos_token_id == ids.eos_id and generation_config.pad_token_id == ids.tokenizer.pad_token_id
    )


def test_a_pipeline_from_an_official_folder(official):
    """Its processor has the sizes that the model has positions for."""
    tiny_bagel_processor().tokenizer.save_pretrained(official)
    pipe = UniEditPipeline.from_pretrained(official)
    assert pipe.processor.image_processor.vae_size == {"longest_edge": 128, "shortest_edge": 128}
    assert pipe.processor.image_processor.vit_size == {"longest_edge": 140, "shortest_edge": 140}
    assert pipe.edit(picture(300, 200), "paint the circle red", num_timesteps=2).size == (128, 80)


def test_no_tokenizer(official):
    with pytest.raises(OSError, match="tokenizer"):
        UniEditPipeline.from_pretrained(official)
