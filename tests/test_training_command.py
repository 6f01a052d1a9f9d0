"""`uniedit train`: examples, options and mistakes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from training_data import edit_rows, save_checkpoint, save_parquet
from training_runs import environment

from uniedit_hf import UniEditPipeline, cli
from uniedit_hf.cli import train
from uniedit_hf.cli.parsing import CommandParser
from uniedit_hf.models.loading import load_model


EXAMPLES = sorted((Path(__file__).parents[1] / "examples" / "train").glob("*.yaml"))
# What a laptop with the tiny model has to change.
TINY = ["--use_cpu", "true", "--max_steps", "2", "--gradient_accumulation_steps", "1", "--max_tokens_per_pack", "120"]
TINY += ["--attn_implementation", "sdpa", "--dtype", "float32", "--optim", "adamw_torch"]
OF_FAMILY = {"bagel": ["--vit_longest_edge", "56"], "janus": ["--max_tokens_per_pack", "200"]}
TINY += ["--dataloader_num_workers", "0", "--report_to", "none", "--disable_tqdm", "true"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    save_checkpoint(folder / "model")
    save_checkpoint(folder / "janus", "janus")
    save_parquet(edit_rows(16), folder / "edits", num_files=2)
    (folder / "former.yaml").write_text("vae_dropout: 0.5")
    return folder


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_understood(path, monkeypatch):
    monkeypatch.setattr("uniedit_hf.training.config.find_spec", lambda name: True)  # the trackers are extras
    model, data, training = CommandParser("train", "", train.run).parse(["--config", str(path)])
    written = yaml.safe_load(path.read_text())
    found = training.to_dict() | vars(model) | vars(data)
    assert {name: found[name] for name in written} == written | {"report_to": [written["report_to"]]}
    assert training.packs_per_step >= 4 and training.conditioning_overrides == {}
    assert train._checkpoint(training.resume_from_checkpoint) is True


def test_the_examples_are_these():
    names = ["bagel_fsdp", "bagel_full", "bagel_lora", "bagel_qlora", "janus_lora", "mix"]
    assert [path.stem for path in EXAMPLES] == names


@pytest.mark.parametrize("path", sorted(EXAMPLES[0].parent.glob("accelerate/*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path):
    config = load_config_from_file(str(path))
    sharded = path.stem != "one_card"
    assert config.num_processes == {"one_card": 1, "one_node": 8, "nodes": 32}[path.stem]
    assert config.distributed_type == (DistributedType.FSDP if sharded else DistributedType.NO)
    assert not sharded or config.fsdp_config["fsdp_version"] == 2


def test_the_slurm_script_is_valid_and_names_files_that_exist():
    script = EXAMPLES[0].parent / "bagel_fsdp.slurm"
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True).stderr == ""
    root = EXAMPLES[0].parents[2]
    assert all((root / name).is_file() for name in re.findall(r"examples/\S+\.\w+", script.read_text()))


@pytest.mark.parametrize("name", ["bagel_fsdp", "bagel_full", "bagel_lora", "janus_lora", "mix"])
def test_examples_run_on_a_small_model(data, tmp_path, capsys, name):
    config = yaml.safe_load((EXAMPLES[0].parent / f"{name}.yaml").read_text())
    config.pop("optim_args", None)
    for part in config.get("datasets", {}).values():
        part["name"] = str(data / "edits")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    flags = ["--config", str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path / "out"), *TINY]
    janus = name.startswith("janus")
    flags += ["--model_name_or_path", str(data / ("janus" if janus else "model"))]
    flags += OF_FAMILY["janus" if janus else "bagel"]
    flags += [] if name == "mix" else ["--dataset_name", str(data / "edits")]
    assert cli.main(["train", *flags]) == 0
    assert f"Trained 2 steps; the model is in {tmp_path / 'out'}." in capsys.readouterr().out
    assert (tmp_path / "out" / "README.md").is_file()
    pipe = UniEditPipeline.from_pretrained(tmp_path / "out")
    trained = {weight: value for weight, value in pipe.model.named_parameters() if "lora_B" in weight}
    assert bool(trained) == name.endswith("lora")
    if trained:  # adapters begin with B at zero
        assert all(value.any() for value in trained.values())
    else:
        before = dict(load_model(str(data / "model"), dtype=torch.float32).named_parameters())
        moved = {weight for weight, value in pipe.model.named_parameters() if not torch.equal(value, before[weight])}
        assert any("_moe_gen" in weight for weight in moved) and not any(weight.startswith("vae.") for weight in moved)
    if name == "bagel_lora":
        adapters = load_file(tmp_path / "out" / "adapter_model.safetensors")
        averaged = load_file(tmp_path / "out" / "ema" / "adapter_model.safetensors")
        assert adapters.keys() == averaged.keys()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_adapters_on_quantised_weights(data, tmp_path, capsys, bits):
    """In a folder whose name is not a plain word."""
    quantised = pytest.importorskip("bitsandbytes", reason="stores weights in 4 or 8 bits").nn
    out = tmp_path / "mit Leerzeichen und ü"
    flags = ["--config", str(EXAMPLES[0].parent / "bagel_qlora.yaml"), "--load_in_4bit", str(bits == 4)]
    flags += ["--load_in_8bit", str(bits == 8), "--dataset_name", str(data / "edits"), "--output_dir", str(out), *TINY]
    assert cli.main(["train", *flags, "--model_name_or_path", str(data / "model")]) == 0
    assert f"the model is in {out}." in capsys.readouterr().out
    adapters = load_file(out / "adapter_model.safetensors")
    moved = [name for name, weight in adapters.items() if "lora_B" in name and weight.any()]
    assert moved and len(moved) == sum("lora_B" in name for name in adapters)

    model, *_ = CommandParser("train", "", train.run).parse([*flags, "--model_name_or_path", str(data / "model")])
    loaded = load_model(model.model_name_or_path, dtype=torch.float32, quantization_config=train._quantization(model))
    kind = quantised.Linear4bit if bits == 4 else quantised.Linear8bitLt
    names = {name for name, module in loaded.named_modules() if isinstance(module, kind)}
    pattern = re.compile(loaded.lora_target_modules(text=True))
    assert names == {name for name, _ in loaded.named_modules() if pattern.fullmatch(name)}, "what is adapted, no more"


def mistakes(data):
    edits = ["--dataset_name", str(data / "edits")]
    model = ["--model_name_or_path", str(data / "model"), "--output_dir", "unused"]
    good = [*edits, *model, "--use_cpu", "true"]
    part = {"name": str(data / "edits")}
    return {
        "no data": ([*model], 1, "Training needs data: give dataset_name or, for a mix of several, datasets"),
        "no model": ([*edits], 2, "the following arguments are required: --model_name_or_path"),
        "data twice": ([*good, "--datasets", json.dumps({"a": part})], 1, "one of the two."),
        "no such split": ([*good, "--dataset_train_split", "trian"], 1, 'Unknown split "trian"'),
        "no such folder": ([*good, "--dataset_name", "nowhere/at-all"], 1, "nowhere/at-all"),
        "no such model": ([*good, "--model_name_or_path", str(data / "edits")], 1, "edits"),
        "unknown recipe": ([*good, "--recipe", "paint"], 2, "argument --recipe: invalid choice: 'paint'"),
        "unknown option": ([*good, "--recipee", "edit"], 2, "there is no option --recipee; did you mean --recipe?"),
        "former name": ([*good, "--vit_dropout", "0.1"], 2, "--vit_dropout is now called --understanding_dropout: "),
        "former name in a file": (
            ["--config", str(data / "former.yaml")],
            2,
            "former.yaml: vae_dropout is now called drawing_dropout: use the new name.",
        ),
        "4 bit without adapters": ([*good, "--load_in_4bit", "true"], 1, "set use_peft to train adapters on them"),
        "4 and 8 bit": ([*good, "--load_in_4bit", "true", "--load_in_8bit", "true"], 1, "both set: choose one"),
        "nothing learned": ([*good, "--image_loss_weight", "0"], 1, "are both 0, so nothing is learned"),
        "stream without end": ([*good, "--dataset_streaming", "true"], 1, "set max_steps."),
        "torn checkpoint": ([*good, "--resume_from_checkpoint", str(data)], 1, "complete.json is missing"),
        "mix that is no JSON": ([*model, "--datasets", "{a"], 1, "datasets is not valid JSON: "),
        "mix without labels": ([*model, "--datasets", "[1]"], 1, "datasets must give each part a label and settings"),
        "mix without name": ([*model, "--datasets", '{"a": {}}'], 1, "datasets: a has no name: give the Hub id"),
        "mix with a typo": (
            [*model, "--datasets", json.dumps({"a": part | {"wieght": 2}})],
            1,
            "datasets: a has no setting 'wieght': use name, config, split, test_split, recipe, weight.",
        ),
        "mix with an unknown recipe": (
            [*model, "--datasets", json.dumps({"a": part | {"recipe": "paint"}})],
            1,
            "datasets: the recipe of a is 'paint': use one of edit, answer, generate, interleaved.",
        ),
        "mix with no weight": (
            [*model, "--datasets", json.dumps({"a": part | {"weight": 0}})],
            1,
            "datasets: the weight of a is 0: use a number above 0.",
        ),
        "mix with a stream": (
            [*model, "--datasets", json.dumps({"a": part}), "--dataset_streaming", "true"],
            1,
            "a mix is not streamed",
        ),
    }


@pytest.mark.parametrize("name", mistakes(Path("unused")))
def test_mistakes_are_one_sentence(data, tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    flags, code, sentence = mistakes(data)[name]
    try:
        found = cli.main(["train", *flags])
    except SystemExit as stopped:
        found = stopped.code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert found == code and last.startswith("uniedit train: ") and sentence in last


def test_a_bad_row_ends_the_command_with_its_sentence(data, tmp_path, capsys):
    save_parquet(edit_rows(6, source_size=[40, 40]), tmp_path / "wrong")
    flags = ["--dataset_name", str(tmp_path / "wrong"), "--model_name_or_path", str(data / "model")]
    flags += ["--output_dir", str(tmp_path / "out"), *TINY]
    assert cli.main(["train", *flags]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("uniedit train: Row 'row-") and "but its row gives 40 x 40" in last


def test_the_command_line_is_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "uniedit_hf.cli", "--version"], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("uniedit_hf ")
