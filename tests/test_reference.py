"""The comparison with the reference passes on its numbers, fails on any other, and takes any folder of the format."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.reference import TOLERANCES, Reference, main, relative_error


FIXTURE = Path(__file__).parent / "fixtures" / "bagel_tiny"
QUANTITIES = [
    "hidden",
    "text_loss",
    "image_loss",
    "grad_norm",
    "answer_logits",
    "latents",
    "images",
    "resize",
    "vae_encode",
    "vae_decode",
]


@pytest.fixture
def copy(tmp_path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "copy"))


def run_benchmark(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.reference", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=Path(__file__).parents[1])


def run_main(folder: Path, monkeypatch) -> str | None:
    """What the command complains about, in this process."""
    monkeypatch.setattr(sys, "argv", ["reference", str(folder)])
    try:
        main()
    except SystemExit as end:
        return end.code


def change_tensor(file: Path, name: str, change) -> None:
    tensors = load_file(file)
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, file)


def change_facts(folder: Path, change, file: str = "reference.json") -> None:
    facts = json.loads((folder / file).read_text())
    change(facts)
    (folder / file).write_text(json.dumps(facts))


def test_matches_the_reference():
    result = run_benchmark(FIXTURE)
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert list(found) == QUANTITIES == list(TOLERANCES)
    assert all(0 <= found[name] <= tolerance for name, tolerance in TOLERANCES.items())


def test_another_weight_fails(copy):
    name = "language_model.model.layers.1.self_attn.v_proj.weight"
    change_tensor(copy / "ema.safetensors", name, lambda weight: weight.index_fill(0, torch.tensor(3), 0.1))
    result = run_benchmark(copy)
    assert result.returncode == 1
    found = json.loads(result.stdout)
    assert list(found) == QUANTITIES
    assert found["hidden"] > 1e-4 and found["latents"] > 1e-4 and found["vae_encode"] < 1e-4
    assert "hidden is over 0.0001" in result.stderr


@pytest.mark.parametrize("name", ["vae2llm.bias", "language_model.model.norm_moe_gen.weight", "connector.fc2.weight"])
def test_another_weight_of_another_part_fails(copy, monkeypatch, name):
    change_tensor(copy / "ema.safetensors", name, lambda weight: weight + 0.01)
    assert "hidden is over 0.0001" in run_main(copy, monkeypatch)


def test_another_autoencoder_weight_fails(copy, monkeypatch):
    change_tensor(copy / "ae.safetensors", "decoder.conv_out.bias", lambda bias: bias + 0.01)
    complaint = run_main(copy, monkeypatch)
    assert "vae_decode is over 0.0001" in complaint and "images is over" in complaint and "hidden" not in complaint


def test_another_resize_table_fails(copy, monkeypatch, capsys):
    def one_size(facts):
        facts["table"][5]["vit_training"][0] += 14

    change_facts(copy, one_size, "resize.json")
    assert run_main(copy, monkeypatch) == "resize is over 0.0001"
    assert json.loads(capsys.readouterr().out)["resize"] == float("inf")


def test_another_answer_fails(copy, monkeypatch):
    def one_token(facts):
        facts["vqa"]["generated"][4] += 1

    change_facts(copy, one_token)
    assert run_main(copy, monkeypatch) == "the greedy answer differs"


# ---- other folders of the format


def swap(first: int, second: int, dim: int = 0):
    def swapped(tensor: torch.Tensor) -> torch.Tensor:
        order = list(range(tensor.shape[dim]))
        order[first], order[second] = second, first
        return tensor.index_select(dim, torch.tensor(order))

    return swapped


def test_other_special_ids_and_fewer_runs(copy, monkeypatch):
    """The same model with bos and 7, eos and 12 changing places; two edits, no drawing."""
    pairs = {500: 7, 501: 12, 7: 500, 12: 501}
    for first, second in ((500, 7), (501, 12)):
        for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
            change_tensor(copy / "ema.safetensors", name, swap(first, second))
        change_tensor(copy / "reference.safetensors", "vqa.logits", swap(first, second, dim=1))

    def renamed(ids: list[int]) -> list[int]:
        return [pairs.get(index, index) for index in ids]

    def change(facts):
        for sample in facts["train"]["samples"]:
            for segment in sample["segments"]:
                if segment["type"] == "text":
                    segment["ids"] = renamed(segment["ids"])
        for ask in (*facts["edit"], *facts["t2i"]):
            ask["prompt"] = renamed(ask["prompt"])
        for key in ("question", "generated"):
            facts["vqa"][key] = renamed(facts["vqa"][key])
        facts["edit"], facts["t2i"] = facts["edit"][1:3], []

    change_facts(copy, change)
    change_facts(copy, lambda meta: meta["special"].update(bos=7, eos=12), "meta.json")
    assert run_main(copy, monkeypatch) is None


def test_an_answer_that_ends_early(copy):
    """The head writes eos where it wrote the answer's tenth token; the reference stops there, without listing it."""
    facts = json.loads((copy / "reference.json").read_text())["vqa"]["generated"]
    last, end = facts.index(450), 501
    change_tensor(copy / "ema.safetensors", "language_model.lm_head.weight", swap(450, end))
    change_tensor(copy / "reference.safetensors", "vqa.logits", lambda x: swap(450, end, dim=1)(x)[:last])
    change_facts(copy, lambda facts: facts["vqa"].update(generated=facts["vqa"]["generated"][:last]))
    error, same = Reference(copy).answer()
    assert same and error["answer_logits"] < 1e-4


def test_a_pack_of_text_alone(copy):
    """Without images there is no noise and no image loss."""

    def change(facts):
        facts["train"]["samples"] = [
            {"segments": [{"type": "text", "ids": [5, 6], "loss": False}, {"type": "text", "ids": [9], "loss": True}]}
        ]
        facts["train"]["mse_mean"] = 0.0

    change_facts(copy, change)
    found = Reference(copy).training()
    assert found["image_loss"] == 0.0
    assert found["hidden"] == float("inf")  # another shape than the fixture's


def test_relative_error():
    zeros, nan = torch.zeros(2), torch.tensor([float("nan"), 1.0])
    assert relative_error(zeros, zeros) == 0.0
    assert relative_error(torch.zeros(0, 4), torch.zeros(0, 4)) == 0.0
    assert relative_error(zeros + 1, zeros) == float("inf")
    assert relative_error(nan, zeros + 1) == float("inf")
    assert relative_error(zeros + 1, nan) == float("inf")
    assert relative_error(zeros, torch.zeros(3)) == float("inf")
    assert relative_error(torch.tensor([1.0, 2.2]), torch.tensor([1.0, 2.0])) == pytest.approx(0.1)
    assert relative_error(3.0, 0.0) == float("inf")
    assert relative_error(3e-9, 1e-9, least=1e-6) == pytest.approx(2e-3)
