"""The reader is right on real images, before and after a loss like that of a VAE, and says none where it should."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st
from PIL import Image

from benchmarks.reader import BARS, drawn_scenes, measure
from tests.instruction_parser import facts_of_data_set, measured
from uniedit_hf.small_world.compare import EXACT, mismatches
from uniedit_hf.small_world.easy_vqa import easy_vqa_folder
from uniedit_hf.small_world.program import QUARTERS, Copies, apply
from uniedit_hf.small_world.reader import read, read_all
from uniedit_hf.small_world.scene import PALETTE, SHAPES, SIDE, Scene, coverage, render


@st.composite
def scenes(draw):
    """Scenes like the data set's, off its grid, inside the image."""
    shape = draw(st.sampled_from(SHAPES))
    background = draw(st.tuples(*[st.integers(225, 255)] * 3))
    width = draw(st.floats(8, 33))
    height = draw(st.floats(8, 33)) if shape == "rectangle" else width
    scene = Scene("rectangle", draw(st.sampled_from(sorted(PALETTE))), (0, 0, width, height), background)
    scene = scene if shape == "rectangle" else scene.turned_into(shape)
    return scene.at((draw(st.floats(0, SIDE)), draw(st.floats(0, SIDE))))


def test_every_bar_is_met_on_a_sample_of_real_pictures():
    figures = measure(120)
    assert {name: figures[name] >= bar for name, bar in BARS.items()} == dict.fromkeys(BARS, True)
    assert figures["questions"] == 1.0
    assert figures["redrawn"] < 0.2
    assert 39 < figures["lossy_psnr"] < 41
    assert figures["clean_place_error_max"] < 0.3 and figures["clean_size_error_max"] < 0.5


def test_the_reader_agrees_with_a_plain_measurement_of_the_same_pictures():
    folder = easy_vqa_folder()
    answers = facts_of_data_set(folder, "test")
    for image_id in range(0, 1000, 10):
        image = Image.open(folder / "test" / "images" / f"{image_id}.png")
        scene, fact = read(image), measured(image)
        assert (scene.shape, scene.color) == (fact.shape, fact.color)
        assert (answers[image_id][0] or scene.shape, answers[image_id][1] or scene.color) == (scene.shape, scene.color)
        assert scene.center == pytest.approx((fact.x, fact.y), abs=0.3)


@given(scene=scenes())
@settings(max_examples=150)
def test_what_is_drawn_is_read_back(scene):
    assert mismatches([scene], read_all(render(scene)), EXACT) == []


@given(scene=scenes(), number=st.integers(2, 4))
@settings(max_examples=80)
def test_copies_are_read_back(scene, number):
    copies = apply(Copies(number), scene)
    image = render(*copies)
    assert len(copies) == number
    assert mismatches(copies, read_all(image), EXACT) == []
    assert read(image) is None


@given(scene=scenes(), shape=st.sampled_from(SHAPES), center=st.sampled_from(QUARTERS), size=st.floats(8, 33))
def test_another_shape_elsewhere_keeps_its_size_and_stays_inside(scene, shape, center, size):
    other = scene.turned_into(shape)
    assert other.size == pytest.approx(scene.size)
    moved = scene.at(center, size)
    assert moved.size == pytest.approx(size)
    assume(max(moved.width, moved.height) <= SIDE)
    for found in (other, moved):
        assert min(found.box) >= -1e-6 and max(found.box) <= SIDE + 1e-6


@given(noise=st.floats(20, 120), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_noise_is_no_shape(noise, seed):
    draw = np.random.default_rng(seed)
    pixels = np.clip(240 + draw.normal(0, noise, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    assert read(pixels) is None


def test_blank_pictures_and_other_colors_are_none():
    for level in (0, 128, 255):
        assert read_all(np.full((SIDE, SIDE, 3), level, dtype=np.uint8)) == []
    pixels = np.full((SIDE, SIDE, 3), 240, dtype=np.uint8)
    pixels[20:40, 20:40] = (255, 105, 180)
    assert read(pixels) is None


def test_a_stray_speck_is_not_a_shape_and_does_not_hide_one():
    scene = Scene("circle", "blue", (8.0, 10.0, 28.0, 30.0), (240, 245, 250))
    pixels = np.array(render(scene))
    pixels[60:62, 60:62] = 0
    assert mismatches([scene], read_all(pixels), EXACT) == []
    pixels[50:54, 56:60] = 0
    assert read(pixels) is None


def test_a_coverage_window_is_part_of_the_whole():
    box = (10.3, 20.7, 31.2, 39.9)
    for shape in SHAPES:
        whole = coverage(shape, box)
        assert np.allclose(whole[18:42, 8:34], coverage(shape, box, (8, 18, 34, 42)))
        assert whole.min() >= 0 and whole.max() == pytest.approx(1)


@pytest.mark.parametrize("size", [(32, 32), (64, 65)])
def test_another_size_is_refused(size):
    with pytest.raises(ValueError, match="64 x 64"):
        read(Image.new("RGB", size))


def test_scenes_with_different_backgrounds_are_not_drawn_together():
    first, second = drawn_scenes(2)
    with pytest.raises(ValueError, match="one background"):
        render(first, second)


def test_the_benchmark_prints_one_line():
    command = [sys.executable, "-m", "benchmarks.reader", "--images", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["images"] == 20
