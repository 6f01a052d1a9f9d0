"""`uniedit edit`, `ask` and `generate`: one input or many, the pipeline's own results, one sentence for mistakes."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import FAMILIES, picture

from uniedit_hf import UniEditPipeline, cli
from uniedit_hf.cli.inference import InferenceOptions, load_pipeline


FAST = ["--device", "cpu", "--dtype", "float32"]


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    make = FAMILIES[request.param]
    pipe = UniEditPipeline(make.model(), make.processor())
    pipe.save_pretrained(folder / "model")
    (folder / "images").mkdir()
    for number in range(3):
        picture(seed=number).save(folder / "images" / f"image-{number}.png")
    settings = {"num_timesteps": 3} if request.param == "bagel" else {}
    size = [] if request.param == "janus" else ["--size", "32", "32"]
    return folder, UniEditPipeline.from_pretrained(folder / "model"), settings, size


def same(path, image):
    """Batches of other sizes round differently, by a gray level at most."""
    pixels = [np.asarray(each, dtype=int) for each in (Image.open(path), image)]
    return pixels[0].shape == pixels[1].shape and np.abs(pixels[0] - pixels[1]).max() <= 1


def test_a_folder_of_images_is_edited_as_the_pipeline_does(saved, tmp_path, capsys):
    folder, pipe, settings, size = saved
    flags = [
        "edit",
        "--model",
        str(folder / "model"),
        "--instruction",
        "make it red",
        "--seed",
        "5",
        "--batch_size",
        "2",
    ]
    flags += [*FAST, *size, "--settings", json.dumps(settings)]
    assert cli.main([*flags, "--image", str(folder / "images"), "--output", str(tmp_path / "out")]) == 0
    options = settings | ({"size": (32, 32)} if size else {})
    for number in range(3):
        source = folder / "images" / f"image-{number}.png"
        expected = pipe.edit(str(source), "make it red", seed=5 + number, **options)
        assert same(tmp_path / "out" / source.name, expected)
    assert "image-2.png" in capsys.readouterr().out
    one = [*flags, "--image", str(folder / "images" / "image-0.png"), "--output", str(tmp_path / "one.png")]
    assert cli.main(one) == 0 and same(tmp_path / "one.png", Image.open(tmp_path / "out" / "image-0.png"))
    assert cli.main(one) == 1 and "exists: choose another output" in capsys.readouterr().err
    assert cli.main([*one, "--overwrite", "true"]) == 0


def test_questions(saved, tmp_path, capsys):
    folder, pipe, *_ = saved
    flags = ["ask", "--model", str(folder / "model"), "--question", "what colour", "--max_new_tokens", "3", *FAST]
    assert cli.main([*flags, "--image", str(folder / "images" / "image-1.png")]) == 0
    first = str(folder / "images" / "image-1.png")
    assert capsys.readouterr().out.rstrip("\n") == pipe.answer(first, "what colour", max_new_tokens=3)
    assert cli.main([*flags, "--image", str(folder / "images"), "--output", str(tmp_path / "answers.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["image"][-11:] for row in rows] == ["image-0.png", "image-1.png", "image-2.png"]
    assert rows[1]["answer"] == pipe.answer(first, "what colour", max_new_tokens=3)


def test_prompts(saved, tmp_path):
    folder, pipe, settings, size = saved
    (tmp_path / "prompts.txt").write_text("a red circle\n\na blue square\n")
    flags = ["generate", "--model", str(folder / "model"), "--settings", json.dumps(settings), *FAST, *size]
    assert cli.main([*flags, "--prompts", str(tmp_path / "prompts.txt"), "--output", str(tmp_path / "out")]) == 0
    options = settings | ({"size": (32, 32)} if size else {})
    assert same(tmp_path / "out" / "0001.png", pipe.generate("a blue square", seed=1, **options))
    assert cli.main([*flags, "--prompt", "a red circle", "--output", str(tmp_path / "one.png")]) == 0
    assert same(tmp_path / "one.png", pipe.generate("a red circle", seed=0, **options))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["edit", "--image", "nowhere.png", "--instruction", "x", "--output", "o.png"], "There is no file or folder"),
        (["edit", "--image", __file__, "--instruction", "x", "--output", "o.png"], "expected a complete PNG"),
        (["edit", "--image", ".", "--instruction", "x", "--output", "o"], "contains no images"),
        (["generate", "--output", "o.png"], "Give one of prompt and prompts"),
        (["generate", "--prompt", "x", "--output", "o"], "name an image file such as"),
        (["generate", "--prompt", "x", "--output", "o.png", "--size", "32"], "give width and height"),
        (["generate", "--prompt", "x", "--output", "o.png", "--batch_size", "0"], "use 1 or more"),
        (["ask", "--image", ".", "--question", "x", "--max_new_tokens", "0"], "use 1 or more"),
    ],
)
def test_mistakes_are_a_sentence(flags, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*flags, "--model", "unused"]) == 1
    message = capsys.readouterr().err
    assert sentence in message and message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_weights_in_4_bits_without_their_package_are_refused(saved, tmp_path, capsys):
    folder = saved[0]
    flags = ["--model", str(folder / "model"), "--question", "what?", "--load_in_4bit", "true", *FAST]
    assert cli.main(["ask", *flags, "--image", str(folder / "images" / "image-0.png")]) == 1
    assert "need the package bitsandbytes: pip install 'uniedit_hf[quantization]'" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_weights_in_4_bits(saved):
    options = InferenceOptions(str(saved[0] / "model"), dtype="float32", load_in_4bit=True, device="cpu")
    model = load_pipeline(options).model
    quantized = {name for name, weight in model.named_parameters() if weight.dtype == torch.uint8}
    assert quantized and all("layers" in name for name in quantized)
    assert all(weight.dtype == torch.float32 for name, weight in model.named_parameters() if name not in quantized)
