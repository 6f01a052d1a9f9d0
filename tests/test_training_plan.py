"""Memory that is planned before anything is loaded, against memory that is counted and measured."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from tiny_models import tiny_bagel_config, tiny_janus_config
from training_data import edit_rows, save_checkpoint, settings, trainer
from transformers import TrainingArguments

from uniedit_hf.models.bagel import BagelConfig, BagelForConditionalGeneration
from uniedit_hf.models.janus import JanusForConditionalGeneration
from uniedit_hf.models.workload import workload
from uniedit_hf.training import UniEditConfig, UniEditTrainer
from uniedit_hf.training.cards import Card, card_named
from uniedit_hf.training.counted_memory import CountedMemory
from uniedit_hf.training.following import checkpointing_of, follow_plan
from uniedit_hf.training.memory_plan import GIB, Way, plan_row, states_bytes
from uniedit_hf.training.ways import FULL, GEN, LORA, QLORA, make_plan, memory_of, refusal


SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def wider(family: str, dtype: torch.dtype):
    """A model whose decoder takes more than its encoders."""
    if family == "bagel":
        ids = tiny_bagel_config().text_config.to_dict()
        names = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")
        text = {name: ids[name] for name in names} | SHAPE
        return BagelForConditionalGeneration(tiny_bagel_config(text_config=text)).to(dtype)
    config = tiny_janus_config()
    for name, value in (SHAPE | {"head_dim": 64}).items():
        setattr(config.text_config, name, value)
    config.vision_config.projection_dim = config.vq_config.projection_dim = SHAPE["hidden_size"]
    config.vq_config.image_token_embed_dim = SHAPE["hidden_size"]
    return JanusForConditionalGeneration(config).to(dtype)


CASES = {
    "recomputed": {},
    "kept": {"activation_checkpointing": False},
    "selected": {"activation_checkpointing": "selective"},
    "accumulated": {"gradient_accumulation_steps": 2},
    "averaged": {"ema_decay": 0.9},
    "encoder": {"freeze_vit": False, "activation_checkpointing": False},
    "autocast": {"bf16": True},
    "adapters": {},
    "adapters kept": {"activation_checkpointing": False},
    "half": {},
}


def planned_and_counted(folder: Path, family: str, case: str) -> tuple[int, int]:
    """The planned peak of a run of two steps, and that of its counted tensors."""
    changes = {"activation_checkpointing": True} | CASES[case]
    dtype = torch.bfloat16 if case == "half" else torch.float32
    adapters = LoraConfig(r=8) if "adapters" in case else None
    options = {"max_steps": 2, "max_tokens_per_pack": 640, "packing_window": 32} | changes
    model = wider(family, dtype)
    run = trainer(folder, edit_rows(200), model=model, family=family, peft_config=adapters, **options)
    with CountedMemory([*run.model.parameters(), *run.model.buffers()]) as counted:
        run.train()
    rows = [[(run.parts[0].recipe, run.parts[0].row(r.row), r.epoch) for r in pack] for pack in run.data.plan.packs]
    work = max((workload(run.reader.read(pack, "", 0)) for pack in rows), key=lambda work: work.tokens)
    way = Way("as it runs", dtype, adapters=adapters is not None)
    kept = checkpointing_of(run.args)
    planned = plan_row(model.config, 640, way, kept, args=run.args, adapters=adapters, work=work)
    return planned.peak, counted.peak


@pytest.mark.parametrize("family", ["bagel", "janus"])
@pytest.mark.parametrize("case", CASES)
def test_a_plan_is_what_a_run_takes(tmp_path, family, case):
    """The peak of counted tensors over two whole steps of the trainer, within 10 %."""
    planned, counted = planned_and_counted(tmp_path, family, case)
    assert planned == pytest.approx(counted, rel=0.1)


def test_the_plan_agrees_with_an_h200():
    """Full tuning with 8-bit states and packs of 11,520 tokens took 82.2 GiB."""
    row = plan_row(BagelConfig(), 11520, FULL[2])
    assert row.way.optim == "adamw_torch_8bit"
    assert row.peak / GIB == pytest.approx(82.2, rel=0.1)


@pytest.mark.parametrize(("way", "memory"), [(FULL[3], "80GB"), (GEN, "80GB"), (LORA, "48GB"), (QLORA, "24GB")])
def test_released_sizes_fit_usual_cards(way, memory):
    assert plan_row(BagelConfig(), 11520, way).fits(memory_of(memory))


def test_all_ways_side_by_side():
    args = UniEditConfig(output_dir="plan", use_cpu=True, bf16=True)
    card = Card("NVIDIA H100 80GB HBM3", memory_of("80GB"), 989, 3.35)
    plan = make_plan("BAGEL-7B-MoT", BagelConfig(), args, card)
    fits = {row.way.name: row.fits(card.memory) for row in plan.rows}
    assert not fits["full-fp32"] and not fits["full-8bit"]
    assert fits["full-4bit"] and fits["lora"] and fits["qlora"] and fits["fsdp over 4"]
    lines = str(plan).splitlines()
    assert len(lines) == 3 + len(plan.rows) and all(row.way.name in line for row, line in zip(plan.rows, lines[3:]))
    assert all(row.seconds(card) > 0 for row in plan.rows)
    sentence = refusal(plan.rows[0], plan)
    assert sentence.startswith("full-fp32 of BAGEL-7B-MoT takes") and "full-4bit" in sentence


def test_states_of_real_optimizers():
    """What the optimizers of torch keep; those of torchao if it is installed."""
    weight = torch.nn.Parameter(torch.zeros(64, 256))
    sizes = [weight.numel()]
    optimizers = {"adamw_torch_fused": torch.optim.AdamW}
    try:
        from torchao.optim import AdamW4bit, AdamW8bit
    except ImportError:
        pass
    else:
        optimizers |= {"adamw_torch_8bit": AdamW8bit, "adamw_torch_4bit": lambda p: AdamW4bit(p, block_size=256)}
    for name, kind in optimizers.items():
        optimizer = kind([weight])
        if name == "adamw_torch_fused":
            weight.grad = torch.ones_like(weight)
            optimizer.step()
            kept = [value for value in optimizer.state[weight].values() if value.ndim]
        else:
            buffers = [optimizer._new_buffer(weight, signed) for signed in (True, False)]
            kept = [getattr(buffer, part) for buffer in buffers for part in ("codes", "scale")]
        assert states_bytes(name, sizes, 4) == sum(each.numel() * each.element_size() for each in kept)


@pytest.mark.parametrize(
    ("text", "bytes_"), [("80GB", 80 * 10**9), ("79.6GiB", round(79.6 * 2**30)), ("24 GB", 24 * 10**9)]
)
def test_sizes_of_devices(text, bytes_):
    assert memory_of(text) == bytes_


def test_a_plan_for_another_device_is_one_for_a_gpu(tmp_path):
    """A machine without a GPU prints what the documentation says of a card of 48 GB: its arithmetic is in 16 bit."""
    folder = released(tmp_path)
    asked = {"output_dir": str(tmp_path), "plan": "show", "plan_memory": "48GB", "report_to": "none"}
    plan = UniEditTrainer.plan(folder, UniEditConfig(**asked))
    row = next(row for row in plan.rows if row.way.name == "lora")
    assert row.fits(plan.card.memory) and round(row.peak / 2**30, 1) == 33.9
    assert UniEditConfig(**asked).bf16 and not UniEditConfig(**asked | {"bf16": False}).bf16
    assert not UniEditConfig(output_dir=str(tmp_path), report_to="none").bf16 or torch.cuda.is_available()


@pytest.mark.parametrize("text", ["80", "GB", "-1GB", "0GB", "80 MB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="plan_memory is .* give the memory of each device, as in 80GB or 79.6GiB"):
        memory_of(text)


def test_what_cannot_fit_is_refused_before_loading(tmp_path):
    folder = save_checkpoint(tmp_path / "model")
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ValueError, match="full-fp32 of .* takes .* but a device of 0.01GB has 9.2 MiB for tensors"):
        trainer(tmp_path, edit_rows(4), model=str(folder), plan_memory="0.01GB")


def test_the_best_that_fits_is_taken(tmp_path):
    """Too small for full tuning in fp32, large enough for adapters."""
    folder = save_checkpoint(tmp_path / "model")
    args = settings(tmp_path, plan="auto")
    plan = UniEditTrainer.plan(str(folder), args)
    peaks = {row.way.name: row.peak for row in plan.rows}
    assert follow_plan(str(folder), args, None, None).row.way.name == "full-fp32"
    between = (peaks["lora"] + peaks["full-fp32"]) / 2 / 2**30 * 32 / 31
    args = settings(tmp_path, plan="auto", plan_memory=f"{between}GiB")
    choice = follow_plan(str(folder), args, None, None)
    assert choice.row.way.name in ("full-8bit", "lora") and choice.sentence.startswith(choice.row.way.name)


def released(folder: Path) -> str:
    """A folder with the configuration of the released BAGEL and no weights."""
    BagelConfig().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def with_torchao(tmp_path, monkeypatch):
    """Whether it is installed is all that planning asks of it."""
    if find_spec("torchao") is None:
        (tmp_path / "site" / "torchao").mkdir(parents=True)
        (tmp_path / "site" / "torchao" / "__init__.py").touch()
        monkeypatch.syspath_prepend(tmp_path / "site")


GPU = {"use_cpu": True, "bf16": True}


def test_one_gpu_does_not_try_fp32(tmp_path, with_torchao):
    args = settings(tmp_path, max_tokens_per_pack=11520, **GPU)
    choice = follow_plan(released(tmp_path / "m"), args, None, None, card=Card("H100", memory_of("80GB"), 989, 3.35))
    assert choice.row.way.name == "full-4bit" and choice.row.checkpointing == "full"
    assert args.model_init_kwargs == {"dtype": torch.bfloat16} and args.activation_checkpointing is True
    assert args.optim == "adamw_torch_4bit" and args.optim_args == "bf16_stochastic_round=True"
    assert choice.sentence.startswith("full-4bit (bf16 weights with stochastic rounding, 4-bit states")
    args = settings(tmp_path, max_tokens_per_pack=11520, torch_compile=False, **GPU)
    choice = follow_plan(released(tmp_path / "m"), args, None, None, card=Card("H200", memory_of("140GiB"), 989, 4.8))
    assert choice.row.way.name == "full-8bit" and choice.row.checkpointing == "none"


def test_what_is_set_stays_as_it_is(tmp_path, with_torchao):
    card, model = Card("H200", memory_of("140GiB"), 989, 4.8), released(tmp_path / "m")
    options = {"activation_checkpointing": "full", "optim": "adamw_torch_4bit", "max_tokens_per_pack": 11520}
    args = settings(tmp_path, **GPU, **options)
    row = follow_plan(model, args, None, None, card=card).row
    assert row.way.name == "full-4bit" and row.checkpointing == "full"
    args = settings(tmp_path, model_init_kwargs={"dtype": "float32"}, max_tokens_per_pack=11520, **GPU)
    with pytest.raises(ValueError, match="full-fp32 of .* takes .* for tensors: use .*lora"):
        follow_plan(model, args, None, None, card=card)
    args = settings(tmp_path, max_tokens_per_pack=11520, **GPU)
    choice = follow_plan(model, args, LoraConfig(r=16), None, card=Card("L40S", memory_of("48GB"), 362, 0.864))
    assert choice.row.way.name == "lora" and args.model_init_kwargs == {"dtype": torch.bfloat16}
    assert args.optim == "adamw_torch_fused"


def test_a_package_that_is_missing_is_named(tmp_path):
    if find_spec("torchao") is not None:
        pytest.skip("torchao is installed")
    args = settings(tmp_path, max_tokens_per_pack=11520, **GPU)
    with pytest.raises(ValueError, match="full-4bit fits H100, but needs the package torchao, .* pip install torchao"):
        follow_plan(released(tmp_path / "m"), args, None, None, card=Card("H100", memory_of("80GB"), 989, 3.35))
    with pytest.raises(ValueError, match="optim='adamw_torch_8bit' needs the package torchao: pip install torchao"):
        trainer(tmp_path, edit_rows(4), optim="adamw_torch_8bit")


def test_flash_adamw_is_for_gpus(tmp_path):
    args = settings(tmp_path, optim="flash_adamw")
    assert args.optim == "flash_adamw" and settings(tmp_path, **args.to_dict() | {"optim": None}).left_open == {
        "optim"
    }
    with pytest.raises(ValueError, match="optim='flash_adamw' runs only on NVIDIA GPUs"):
        UniEditTrainer.get_optimizer_cls_and_kwargs(args)


def test_on_a_cpu_only_what_is_recomputed_is_chosen(tmp_path):
    args = settings(tmp_path)
    usual = TrainingArguments.__dataclass_fields__["optim"].default
    choice = follow_plan(str(save_checkpoint(tmp_path / "model")), args, None, None)
    assert choice.sentence is None and choice.adapters is None
    assert args.optim == usual and args.activation_checkpointing is False
    assert args.model_init_kwargs == {"dtype": torch.float32}
    kept = choice.row.peak
    args = settings(tmp_path)
    follow_plan(str(tmp_path / "model"), args, None, None, card=Card("a small machine", int(1.9 * kept), kind="cpu"))
    assert args.activation_checkpointing == "selective" or args.activation_checkpointing is True


def test_cards_are_found_by_their_names():
    assert card_named("NVIDIA H200").tflops == 989
    assert card_named("NVIDIA H100 PCIe").tflops == 756
    assert card_named("NVIDIA A100-SXM4-40GB").bandwidth == 1.555
    assert card_named("NVIDIA L4").tflops == 121 and card_named("NVIDIA L40S").tflops == 362
    assert card_named("Unheard of").tflops is None
