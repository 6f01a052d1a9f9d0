"""A real browser on the page: upload, run, previews, slider, stop, bad file, dark, phone, keyboard. It leaves
screenshots in `runs/browser`. Debian's chromium, driven by playwright: make test-browser

The models are the quickstart's where it has run, else the small base model twice.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo_pages import save_bad_files


playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium"),
]

ROOT = Path(__file__).parents[1]
SHOTS = ROOT / "runs" / "browser"
EXAMPLE = ROOT / "spaces" / "uniedit_demo" / "demo" / "examples" / "red_circle.png"
BASE = ROOT / "assets" / "small_bagel"
TUNED = ROOT / "runs" / "quickstart" / "model"
INSTRUCTION = "if the shape is in the left half of the image, make it green; otherwise change nothing."
SECONDS = int(os.environ.get("BROWSER_PATIENCE", "60")) * 1000  # of patience, on a busy machine


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The command itself, without network."""
    tuned = TUNED if TUNED.is_dir() else BASE
    command = [sys.executable, "-m", "uniedit_hf.cli", "demo", "--base", BASE, "--tuned", tuned]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(os.cpu_count())}
    with subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            while not (match := re.search(r"Open (\S+)", line := server.stdout.readline())):
                assert line, "the server ended"
            yield match[1]
        finally:
            server.kill()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address, request):
    """A page that must bring no error and ask nobody but the server for anything."""
    options = {"viewport": {"width": 1280, "height": 900}} | getattr(request, "param", {})
    page, mistakes = browser.new_page(**options), []
    page.set_default_timeout(SECONDS)
    page.on("pageerror", lambda error: mistakes.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith(("data:", "blob:", address)) or mistakes.append(asked.url))
    open_page(page, address)
    yield page
    page.close()
    assert mistakes == []


def open_page(page, address: str) -> None:
    page.goto(address)
    page.locator("#edit-source input[type=file]").wait_for(state="attached")


def shot(page, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def test_the_first_screen_shows_a_finished_example(page):
    """Before anything is pressed: request, both results, whose they are, and the examples above the fold."""
    page.locator(".results .pair img:visible").nth(1).wait_for()
    assert page.get_by_label("Instruction").input_value()
    until(lambda: status(page).startswith("Stored example"), "whose results they are")
    boxes = [
        each.bounding_box() for each in page.locator(".results .pair img:visible, .examples button:visible").all()
    ]
    assert len(boxes) >= 4 and all(box["y"] + box["height"] <= 900 for box in boxes)
    texts = page.locator(".examples button:visible").all_inner_texts()
    assert not any("..." in text or "…" in text for text in texts), "whole texts"
    shot(page, "opened")


def test_the_first_image_is_there_within_a_second(browser, address):
    """From the request of the page to a decoded image of the stored result: the best of five openings, in seconds of
    an idle machine."""
    seconds, waits = [], []
    for _ in range(5):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        begun = time.monotonic()
        page.goto(address, wait_until="commit")
        page.wait_for_function(
            "[...document.querySelectorAll('.results .pair img')].some(i => i.complete && i.naturalWidth > 0)",
            polling=20,
            timeout=SECONDS,
        )
        seconds.append(round(time.monotonic() - begun, 2))
        page.close()
        waits.append(seconds_per_second_of_work())
    print("first image after", seconds, "s; a second of work takes", waits, "s")  # noqa: T201
    assert min(seconds) < max(1, min(waits))


def until(condition, what: str) -> None:
    end = time.monotonic() + SECONDS / 1000
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def seconds_per_second_of_work() -> float:
    """How long this process waits for a second of a core: 1 on an idle machine, more where others work."""
    begun, used = time.monotonic(), time.process_time()
    while time.process_time() - used < 0.2:
        pass
    return round((time.monotonic() - begun) / 0.2, 2)


def test_a_photo_is_doubted_where_the_result_would_be(page):
    page.locator("#edit-source").get_by_label("Remove Image").click()
    page.locator("#edit-source input[type=file]").set_input_files(str(EXAMPLE.with_name("cat.jpg")))
    page.locator(".results .notice:visible").get_by_text("not a drawing of shapes").wait_for()
    shot(page, "photo")
    page.locator(".notice:visible button").click()
    page.locator(".notice").first.wait_for(state="hidden")


def test_a_link_holds_the_seed_and_a_tile_its_request(page, address):
    page.locator(".examples button:visible").last.click()
    text = page.locator(".examples button:visible").last.inner_text().strip()
    page.wait_for_function(f"[...document.querySelectorAll('textarea')].some(t => t.value == {text!r})")
    page.get_by_role("button", name="Edit", exact=True).click()
    until(lambda: status(page).startswith("Finished"), "the edit ends")
    seed = re.search(r"seed (\d+)", status(page))[1]
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.locator("button:visible", has_text="Copy link").click()
    page.locator(".link-note:visible").get_by_text(f"Link copied: it holds text, settings and seed {seed}").wait_for()
    assert f"seed={seed}" in page.evaluate("window.copied")
    page.get_by_label("Instruction").fill("something else")
    page.locator(".gallery .thumbnail-lg").first.click()
    page.wait_for_function(f"[...document.querySelectorAll('textarea')].some(t => t.value == {text!r})")
    until(lambda: page.locator(".gallery .preview img").first.bounding_box()["height"] > 200, "it opens large")
    shot(page, "tile")


def start_edit(page, picture=EXAMPLE, steps: int | None = None) -> None:
    page.locator("#edit-source input[type=file]").set_input_files(str(picture))
    page.get_by_label("Instruction").fill(INSTRUCTION)
    if steps is not None:
        page.get_by_text("Settings", exact=True).first.click()
        page.get_by_label("number input for Steps").first.fill(str(steps))
    page.locator("#edit-source img").wait_for()
    page.get_by_role("button", name="Edit", exact=True).click()


def status(page) -> str:
    return page.locator(".status:visible").first.inner_text()


def results(page) -> list[str]:
    return page.locator(".results .pair img:visible").evaluate_all("images => images.map(image => image.src)")


def test_edit(page):
    start_edit(page, steps=40)
    seen: list[tuple[str, ...]] = []
    while not status(page).startswith("Finished"):
        now = tuple(results(page))
        if len(now) == 2 and now not in seen:
            seen.append(now)
        time.sleep(0.01)
    assert len(seen) >= 2, "previews of both models arrive before the end"
    assert re.search(r"seed [1-9]\d+, 40 steps", status(page)), "a seed of its own, though the settings were opened"
    alike = results(page)[0] == results(page)[1]
    assert alike == (not TUNED.is_dir()), "the same seed for both: one model twice gives one picture"
    page.locator(".results .slider-wrap:visible, .results [role=slider]:visible").first.wait_for()
    handle = page.locator(".results .inner:visible").first
    page.locator(".results .icon-wrap:visible").first.hover()  # once it lies still
    box = handle.bounding_box()
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    until(lambda: handle.bounding_box()["x"] > box["x"] + 30, "the slider follows")
    page.get_by_label("Source and tuned").check()
    page.get_by_text("Why: what the models see").click()
    asked = page.get_by_role("row").filter(has_text="is the shape in the left half of the image?")
    asked.wait_for()
    answers = asked.get_by_role("cell").all_inner_texts()[1:]
    assert set(answers) <= {"yes", "no"}, "an answer to the question, of both models"
    page.locator(".gallery img").first.wait_for()
    shot(page, "edit")


def test_thoughts_stream_before_an_edit(page):
    """The fold-out shows what either model thinks while nothing is drawn yet."""
    page.locator("button:visible", has_text="Settings").first.click()
    page.get_by_label("number input for Think first").locator("visible=true").fill("32")
    page.locator("button:visible", has_text="Thoughts").click()
    start_edit(page)
    boxes = page.locator(".results .pair textarea:visible")
    thought_first = None
    while not status(page).startswith("Finished"):
        thoughts = [boxes.nth(number).input_value() for number in range(2)]
        if thought_first is None and any(thoughts):
            thought_first = not results(page)
        time.sleep(0.01)
    assert thought_first
    assert all(boxes.nth(number).input_value() for number in range(2))
    shot(page, "thoughts")


def test_the_seed_is_kept(page):
    page.get_by_role("tab", name="Generate").click()
    page.get_by_label("Description").fill("a big red circle at the left")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_text("Finished").first.wait_for()
    seed = re.search(r"seed (\d+)", status(page))[1]
    page.locator("button:visible", has_text="Keep this seed").click()
    page.locator("button:visible", has_text="Settings").first.click()
    assert page.get_by_label("Seed", exact=True).locator("visible=true").input_value() == seed
    page.get_by_role("button", name="Generate", exact=True).click()
    page.wait_for_function("!document.body.innerText.includes('Finished')")
    page.get_by_text("Finished").first.wait_for()
    assert f"seed {seed}," in status(page)
    shot(page, "generate")


def test_ask_with_thoughts(page):
    page.get_by_role("tab", name="Ask").click()
    page.locator("#ask-source input[type=file]").set_input_files(str(EXAMPLE))
    page.get_by_label("Question").fill("what color is the shape?")
    page.locator("#ask-source img").wait_for()
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_text("Finished").first.wait_for()
    boxes = page.locator(".results .pair textarea:visible")
    answers = [boxes.nth(number).input_value() for number in range(2)]
    assert all(answers)
    page.locator("button:visible", has_text="Thoughts").click()
    shot(page, "ask")


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_stop(page, way):
    start_edit(page, steps=99)
    page.get_by_text(re.compile(r"step \d+ of 99")).first.wait_for()
    page.locator(".stop-button:visible").click() if way == "button" else page.keyboard.press("Escape")
    page.get_by_text("Stopped.").wait_for()
    page.get_by_role("button", name="Edit", exact=True).click()  # at once, and the queue is free again
    page.get_by_text(re.compile(r"step \d+ of 99")).first.wait_for()
    page.locator(".stop-button:visible").click()
    page.get_by_text("Stopped.").wait_for()
    before = results(page)
    time.sleep(1.5)
    assert results(page) == before and "Stopped." in status(page)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("text", "not an image that can be read"), ("huge", "far too large"), ("animation", "This is an animation")],
)
def test_a_bad_file_gives_a_toast(page, tmp_path, kind, words):
    page.locator("#edit-source input[type=file]").set_input_files(str(save_bad_files(tmp_path)[kind]))
    page.get_by_label("Instruction").fill(INSTRUCTION)
    time.sleep(1)
    page.get_by_role("button", name="Edit", exact=True).click()
    page.get_by_test_id("toast-body").get_by_text(words).first.wait_for()
    shot(page, f"bad-{kind}")


def test_a_link_fills_the_page(page, address):
    open_page(page, f"{address}?tab=generate&text=a%20small%20blue%20triangle&seed=7&steps=5")
    page.get_by_role("tab", name="Generate", selected=True).wait_for()
    page.wait_for_function("[...document.querySelectorAll('textarea')].some(t => t.value == 'a small blue triangle')")
    assert page.get_by_label("Description").input_value() == "a small blue triangle"


def test_every_control_has_a_name(page):
    """What a screen reader would say; and the request is reached by keyboard alone."""
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button, textarea, input:not([type=file])')]
        .filter(e => e.offsetParent !== null)
        .filter(e => !(e.innerText || e.getAttribute('aria-label') || e.title || e.labels?.length
                       || e.closest('label') || e.getAttribute('aria-labelledby')))
        .map(e => e.outerHTML.slice(0, 200))"""
    )
    assert unnamed == []
    page.get_by_label("Instruction").fill(INSTRUCTION)
    page.locator("#edit-source").get_by_label("Remove Image").click()
    page.get_by_label("Instruction").press("Enter")
    page.get_by_test_id("toast-body").get_by_text("upload an image").first.wait_for()


@pytest.mark.parametrize(
    "page",
    [{"viewport": {"width": 390, "height": 844}, "has_touch": True}, {"color_scheme": "dark"}],
    indirect=True,
    ids=["phone", "dark"],
)
def test_other_screens(page, request):
    start_edit(page)
    page.get_by_text("Finished").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing to scroll sideways"
    phone = request.node.callspec.id == "phone"
    assert page.locator(".keyboard").is_visible() != phone, "nobody is told to press a key that is not there"
    assert not phone or page.locator("#masthead").bounding_box()["x"] <= 20, "narrow margins"
    shot(page, request.node.callspec.id)
