"""The page's API through gradio_client: every endpoint, what it refuses, ten users at once, and what stops."""

from __future__ import annotations

import gc
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from tiny_models import picture


pytest.importorskip("gradio", reason="the page needs the extra demo")

from demo_pages import INSTRUCTION, save_bad_files, served, tiny_pair  # noqa: E402
from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402
from PIL import Image  # noqa: E402

from uniedit_hf.demo.handlers import Handlers, _cell, compare, merged  # noqa: E402
from uniedit_hf.demo.history import remember, source_of  # noqa: E402
from uniedit_hf.demo.limits import Limits  # noqa: E402
from uniedit_hf.demo.links import read_link  # noqa: E402
from uniedit_hf.demo.notices import is_drawing, notice  # noqa: E402
from uniedit_hf.demo.questions import as_question, embedded_questions  # noqa: E402
from uniedit_hf.demo.request_examples import nearest, read_examples, read_stored  # noqa: E402
from uniedit_hf.demo.stored_example import is_right, store  # noqa: E402
from uniedit_hf.pipeline import UniEditPipeline  # noqa: E402
from uniedit_hf.streams import Finished  # noqa: E402


SPACE = Path(__file__).parents[1] / "spaces" / "uniedit_demo"
SETTINGS = {"steps": 6, "text_guidance": 2.0, "thinking": 0}


@pytest.fixture(scope="module")
def pair():
    return tiny_pair()


@pytest.fixture(scope="module")
def running(pair):
    with served(pair) as running:
        yield running


@pytest.fixture(scope="module")
def page_of(running):
    return running[0]


@pytest.fixture(scope="module")
def address(running) -> str:
    return running[1]


@pytest.fixture(scope="module")
def client(address) -> Client:
    return Client(address, verbose=False)


@pytest.fixture
def source(tmp_path) -> str:
    picture(64, 48).save(tmp_path / "source.png")
    return str(tmp_path / "source.png")


def edit(client: Client, source, instruction=INSTRUCTION, **changes):
    arguments = {"seed": 7, "image_guidance": 1.0} | SETTINGS | changes
    return client.submit(picture=source, instruction=instruction, **arguments, api_name="/edit")


def pixels(image) -> np.ndarray:
    return np.asarray(Image.open(image["path"] if isinstance(image, dict) else image).convert("RGB"))


# ---- endpoints


def test_the_endpoints(client):
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert set(named) == {"/edit", "/ask", "/generate", "/why"}
    assert [each["parameter_name"] for each in named["/edit"]["parameters"]][:3] == ["picture", "instruction", "seed"]


def test_edits_come_with_previews_and_are_the_pipelines_own(client, pair, source):
    job = edit(client, handle_file(source))
    base, tuned, *thoughts, seed, status = job.result()
    assert thoughts == ["", ""] and seed == 7 and status.startswith("Finished · seed 7, 6 steps")
    shown = [output[:2] for output in job.outputs()[:-1]]
    assert any(isinstance(output[0], (str, dict)) and output[0] for output in shown), "a preview before the end"
    settings = {"seed": 7, "num_timesteps": 7, "text_guidance_scale": 2.0, "image_guidance_scale": 1.0}
    for found, pipe in ((base, pair.base), (tuned, pair.tuned)):
        expected = pipe.edit(picture(64, 48), INSTRUCTION, guidance_renorm="global", **settings)
        assert (pixels(found) == np.asarray(expected)).all()
    assert (pixels(base) != pixels(tuned)).any()
    again = edit(client, handle_file(source)).result()
    assert (pixels(again[0]) == pixels(base)).all()


def test_a_seed_is_drawn_and_told(client):
    drawings = [
        client.predict(prompt="a red circle", seed=seed, **SETTINGS, api_name="/generate") for seed in (-1, None)
    ]
    assert drawings[0][4] != drawings[1][4]
    again = client.predict(prompt="a red circle", seed=drawings[0][4], **SETTINGS, api_name="/generate")
    assert (pixels(again[1]) == pixels(drawings[0][1])).all()


def test_thoughts_stream_before_a_drawing(client, pair):
    job = client.submit(prompt="a red circle", seed=1, **SETTINGS | {"thinking": 6}, api_name="/generate")
    *_, base_thoughts, tuned_thoughts, _, _ = job.result()
    assert base_thoughts and base_thoughts == pair.base.think(None, "a red circle", max_new_tokens=6)
    assert tuned_thoughts == pair.tuned.think(None, "a red circle", max_new_tokens=6)


def test_answers_stream(client, pair, source):
    job = client.submit(picture=handle_file(source), question="what is this", thinking=0, api_name="/ask")
    base, tuned, *_, status = job.result()
    expected = pair.base.answer(picture(64, 48), "what is this", max_new_tokens=16)
    assert base == expected and tuned and status.startswith("Finished") and len(job.outputs()) > 1


def test_why_asks_the_embedded_question(client, pair, source):
    table = client.predict(picture=handle_file(source), instruction=INSTRUCTION, api_name="/why").splitlines()
    answer = pair.base.answer(picture(64, 48), "is the circle red?", max_new_tokens=16)
    assert len(table) == 3 and table[2].startswith(f"| is the circle red? | {_cell(answer)} |")


def test_every_tab_of_a_pair_of_janus(source):
    """A family without steps, renormalized guidance and thoughts."""
    pair = tiny_pair("janus")
    with served(pair) as (page, address):
        client = Client(address, verbose=False)
        job = client.submit(picture=handle_file(source), instruction=INSTRUCTION, seed=7, api_name="/edit")
        *edits, _, _, seed, status = job.result()
        shown = [output[:2] for output in job.outputs()[:-1]]
        assert any(output[0] for output in shown) and seed == 7 and "steps" not in status
        *drawings, _, _, _, _ = client.predict(prompt="a red circle", seed=7, api_name="/generate")
        answers = client.predict(picture=handle_file(source), question="what is this", api_name="/ask")[:2]
        table = client.predict(picture=handle_file(source), instruction=INSTRUCTION, api_name="/why").splitlines()
        with pytest.raises(AppError, match="cannot be asked to think first"):
            client.predict(prompt="a red circle", thinking=5, api_name="/generate")
    settings = {"seed": 7, "text_guidance_scale": 1.5, "temperature": 0.5}
    image, answered = picture(64, 48), {"max_new_tokens": 16}
    for number, pipe in enumerate((pair.base, pair.tuned)):
        expected = pipe.edit(image, INSTRUCTION, image_guidance_scale=1.0, **settings)
        assert (pixels(edits[number]) == np.asarray(expected)).all()
        assert (pixels(drawings[number]) == np.asarray(pipe.generate("a red circle", **settings))).all()
        assert answers[number] == pipe.answer(image, "what is this", **answered)
        assert _cell(pipe.answer(image, "is the circle red?", **answered)) in table[2]
    hidden = {getattr(each, "label", None) for each in page.blocks.values() if getattr(each, "visible", True) is False}
    assert {"Steps", "Think first", "Thoughts"} <= hidden


def test_the_outputs_of_the_api_have_names(client):
    named = client.view_api(return_format="dict")["named_endpoints"]
    drawn = ["Base", "Tuned", "Thoughts of base", "Thoughts of tuned", "Seed of these images", "Status"]
    assert [each["label"] for each in named["/edit"]["returns"]] == drawn
    assert [each["label"] for each in named["/generate"]["returns"]] == drawn
    assert [each["label"] for each in named["/ask"]["returns"]] == [*drawn[:4], "Status"]
    assert [each["label"] for each in named["/why"]["returns"]] == ["Why"]


def test_the_page_opens_with_a_finished_example(page_of, monkeypatch):
    """Before anything is pressed, and without a model at work; an address with settings shows those instead."""
    for name in ("edit", "answer", "generate"):
        monkeypatch.setattr(UniEditPipeline, name, lambda *_, **__: pytest.fail("a model works"))
    parts = {}
    for part in page_of.blocks.values():
        parts.setdefault(getattr(part, "label", None), part)
    first = {name: parts[name].value for name in ("Base", "Tuned", "Source image", "Instruction", "Status")}
    assert all(Path(first[name]["path"]).is_file() for name in ("Base", "Tuned", "Source image"))
    assert first["Instruction"] == read_examples(True, "edit")[0].text and first["Status"].startswith("Stored example")
    assert opened(page_of) == {}, "nothing that arrives later can replace what a visitor has begun"
    linked = opened(page_of, tab="ask", text="what is this")
    assert linked == {"Question": "what is this", "Image": None, "Base": None, "Tuned": None, "Status": ""}


def opened(page, **parameters) -> dict:
    """What opening an address fills, by the label of what is filled; of labels that tabs share, the first."""
    fill = next(each for each in page.fns.values() if each.targets[0][1] == "load")
    filled = fill.fn(SimpleNamespace(query_params=parameters))
    found = {}
    for part, value in filled.items():
        found.setdefault(getattr(part, "label", None), value)
    found.pop(None, None)
    return found


@pytest.mark.parametrize("tab", ["edit", "ask", "generate"])
def test_the_stored_example_is_one_of_the_list(tab):
    """By the rule of stored_example.py; which images those are depends on the shipped base."""
    stored, examples = read_stored(tab), read_examples(True, tab)
    assert stored.example in examples and (tab == "edit" or stored.example == examples[0])
    if tab == "ask":
        assert all(isinstance(answer, str) and answer for answer in stored.results)
    else:
        assert {image.mode for image in stored.results} == {"RGB"} and stored.seed == 0


def test_the_program_that_stores_the_example(pair, tmp_path):
    said = store(pair, "tiny", "tiny, tuned", tmp_path)
    example = read_examples(True, "edit")[0]
    assert said == f"Stored: {example.text} (no example is right)"
    stored = read_stored("edit", tmp_path)
    settings = {"seed": 0, "num_timesteps": 12, "text_guidance_scale": 2.5, "image_guidance_scale": 1.0}
    expected = pair.base.edit(str(example.picture), example.text, guidance_renorm="global", **settings)
    assert (np.asarray(stored.results[0]) == np.asarray(expected)).all()
    assert "tiny and tiny, tuned, seed 0" in stored.status


def test_what_is_right_is_read_from_pixels():
    source = Image.open(SPACE / "demo" / "examples" / "red_circle.png").convert("RGB")
    expected = {"shape": "circle", "color": "red", "area": [0.8, 1.25]}
    assert is_right(source, source, expected)
    assert not is_right(source, source, expected | {"color": "green"})
    assert not is_right(source, source, expected | {"area": [1.25, 9]})
    assert not is_right(Image.new("RGB", source.size, "white"), source, expected)
    assert not is_right(source.transpose(Image.Transpose.FLIP_LEFT_RIGHT), source, expected), "it moved"


def test_what_small_models_do_not_know_is_said_before_anything_is_drawn(pair):
    assert pair.unknown_words("paint the <b>elephant</b>, paint THE red elephant!") == ["b", "elephant", "THE"]
    folder = SPACE / "demo" / "examples"
    photo, drawing = (Image.open(folder / name).convert("RGB") for name in ("cat.jpg", "red_circle.png"))
    assert notice(pair, drawing, "make it a red circle") is None
    said = notice(pair, photo, "paint the <b>house</b>")
    assert "not a drawing of shapes" in said and "b, house" in said and "<b>" not in said
    assert "uniedit demo --base ByteDance-Seed/BAGEL-7B-MoT" in said and f"{pair.side}-pixel" in said
    examples = read_examples(True, "edit")
    assert nearest("turn it into a triangle, make it a triangle", examples) == 2
    assert nearest("", examples) == 0
    *_, last = Handlers(pair, Limits()).generate("a red elephant", steps=3)
    assert last[-1].endswith("unknown words: elephant")


@pytest.mark.parametrize("name", ["cat.jpg", "coffee.jpg", "rocket.jpg"])
def test_photos_are_not_drawings(name):
    assert not is_drawing(Image.open(SPACE / "demo" / "examples" / name).convert("RGB"))


@pytest.mark.parametrize("path", sorted((SPACE / "demo" / "examples").glob("*.png")), ids=lambda path: path.stem)
def test_examples_and_results_are_drawings(path):
    assert is_drawing(Image.open(path).convert("RGB"))


# ---- bad input


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "or not an image that can be read"),
        ("huge", "far too large; up to 25 megapixels"),
        ("animation", "This is an animation"),
        ("cut", "This file is damaged"),
    ],
)
def test_bad_pictures(client, tmp_path, source, kind, message):
    with pytest.raises(AppError, match=message) as error:
        edit(client, handle_file(str(save_bad_files(tmp_path)[kind]))).result()
    assert "Traceback" not in str(error.value) and "\n" not in str(error.value)
    assert edit(client, handle_file(source)).result()[4] == 7, "the server lives on"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instruction": ""}, "write an instruction first"),
        ({"instruction": " \n"}, "write an instruction first"),
        ({"instruction": "a" * 100_000}, "100,000 characters; up to 2,000"),
        ({"seed": -2}, "Seed is -2: please use a number from -1"),
        ({"steps": 10**6}, "Steps is 1000000: please use a number from 1 to 99"),
        ({"text_guidance": -3}, "Text guidance is -3: please use a number from 1 to 10"),
        ({"steps": None}, "Steps is empty: please use a number from 1 to 99"),
        ({"image_guidance": None}, "Image guidance is empty"),
        ({"thinking": None}, "Think first is empty"),
        ({"steps": "many"}, "Steps is 'many'"),
        ({"seed": True}, "Seed is 'True'"),
        ({"source": None}, "upload an image first"),
    ],
)
def test_bad_requests(client, source, changes, message):
    with pytest.raises(AppError, match=message):
        edit(client, **{"source": handle_file(source)} | changes).result()


def call(address: str, name: str, data: list) -> str:
    """What an endpoint answers to a hand-made request; gradio_client would upload the files that it names."""
    body = json.dumps({"data": data}).encode()
    request = urllib.request.Request(f"{address}gradio_api/call/{name}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        event = json.loads(answer.read())["event_id"]
    with urllib.request.urlopen(f"{address}gradio_api/call/{name}/{event}", timeout=30) as answer:
        return answer.read().decode()


@pytest.mark.parametrize("path", ["/etc/passwd", str(SPACE / "app.py"), "README.md", "../../../../etc/passwd"])
def test_no_file_of_the_server_is_read(client, address, source, path):
    stolen = {"path": path, "meta": {"_type": "gradio.FileData"}}
    answer = call(address, "edit", [stolen, INSTRUCTION, 7, 6, 2.0, 1.0, 0])
    assert answer.startswith("event: error") and "Only an image that was uploaded here can be read" in answer
    assert "root:" not in answer and "passwd" not in answer and str(SPACE.parent) not in answer
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}gradio_api/file={urllib.parse.quote(path)}")
    assert refused.value.code in (403, 404)
    assert edit(client, handle_file(source)).result()[4] == 7, "the server lives on"


@pytest.mark.parametrize("url", ["data:text/plain;base64,SGVsbG8=", "file:///etc/passwd"])
def test_an_address_instead_of_a_file_is_refused(address, url):
    inside = {"path": "", "url": url, "meta": {"_type": "gradio.FileData"}}
    assert call(address, "ask", [inside, "what is this", 0]).startswith("event: error")


# ---- many at once, and stopping


def test_ten_users_are_served_in_order(address, pair, source):
    """None starves, the queue is bounded, and memory returns to where it was."""
    clients = [Client(address, verbose=False) for _ in range(10)]

    def use(number: int) -> float:
        assert edit(clients[number], handle_file(source), seed=number, steps=2).result()[4] == number
        return time.monotonic()

    def round_of_ten() -> list[float]:
        with ThreadPoolExecutor(10) as pool:
            return list(pool.map(use, range(10)))

    round_of_ten()  # libraries and allocators have what they keep
    gc.collect()
    before = psutil.Process().memory_info().rss
    finished = sorted(round_of_ten())
    gc.collect()
    assert psutil.Process().memory_info().rss - before < 60e6
    waits = np.diff(finished)
    assert waits.max() < 10 * max(waits.mean(), 0.05), "one after the other, nobody is left behind"
    assert not streams()


def test_a_full_queue_says_so(pair, source):
    with served(pair, Limits(waiting=2)) as (_, address):
        clients = [Client(address, verbose=False) for _ in range(6)]
        jobs = [edit(each, handle_file(source), steps=99) for each in clients]
        found = [job.exception(timeout=60) for job in jobs]
        refused = [error for error in found if error is not None]
        assert refused and len(refused) < 6 and all("Queue is full" in str(error) for error in refused)


def streams() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "uniedit-stream"]


def until(condition, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_who_leaves_stops_the_work(client, source):
    job = edit(client, handle_file(source), steps=99)
    assert until(lambda: len(streams()) == 2)
    assert until(lambda: len(job.outputs()) > 1)
    job.cancel()
    assert until(lambda: not streams())
    assert edit(client, handle_file(source)).result()[4] == 7


def test_time_runs_out(pair):
    handlers = Handlers(pair, Limits(seconds=0))
    with pytest.raises(Exception, match="took longer than 0 seconds"):
        list(handlers.edit(picture(), INSTRUCTION, steps=99))
    assert not streams()


def test_events_by_turns_and_all_closed():
    closed = []

    def stream(name, count):
        try:
            yield from [name] * count
            yield Finished(name, "")
        finally:
            closed.append(name)

    events = [which for which, _ in merged([stream("a", 1), stream("b", 3)], 60)]
    assert events == [0, 1, 0, 1, 1, 1] and sorted(closed) == ["a", "b"]


# ---- pieces


@pytest.mark.parametrize(
    ("instruction", "questions"),
    [
        ("if the shape is red, make it blue; otherwise leave it.", ["is the shape red?"]),
        ("is there a circle? if so, shrink it; otherwise make it yellow.", ["is there a circle?"]),
        ("If the shop sign names a colour, repaint the door in it.", ["does the shop sign name a colour?"]),
        ("if the shape has three corners, move it", ["does the shape have three corners?"]),
        ("if there is a red circle make it blue", ["is there a red circle?"]),
        (
            "if it is in the top half, change nothing; otherwise, if the shape is not a triangle, make it bigger",
            ["is it in the top half?", "is the shape not a triangle?"],
        ),
        ("make it blue", []),
    ],
)
def test_questions_of_instructions(instruction, questions):
    assert embedded_questions(instruction) == questions


def test_a_statement_that_cannot_be_turned_is_asked_about():
    assert as_question("two dogs sleep") == "is it true that two dogs sleep?"


def test_links():
    link = read_link({"tab": "ask", "text": "x" * 5000, "seed": "7", "steps": "1e9", "thinking": "<b>"}, 2000)
    assert (link.tab, len(link.text), link.seed, link.steps, link.thinking) == ("ask", 2000, 7, None, None)
    assert read_link({"tab": "../etc"}, 10).tab is None


def test_the_comparison():
    first, second = picture(64, 48), picture(32, 32, seed=1)
    assert [each.size for each in compare("Source and tuned", first, None, second)] == [(32, 32)] * 2
    assert compare("Base and tuned", first, None, second) is None


def test_the_history_restores_a_request():
    first, second = picture(64, 48), picture(32, 32, seed=1)
    history = []
    for number in range(14):
        given = (first, second, second, number, f"edit {number}", -1, 11, 2.5, None, 0)
        history, gallery = remember("edit", history, *given)
    assert len(history) == 12 and history[0].caption == "edit 13 (seed 13)" and history[0].tile.size == (96, 48)
    assert history[0].values == ("edit 13", 13, 11, 2.5, None, 0), "with the seed that was used"
    assert (np.asarray(source_of(history[0])) == np.asarray(second)).all()
    assert len(gallery.value.root) == 12 if hasattr(gallery.value, "root") else gallery.visible
    assert remember("edit", [], None, None, None, 0, "x", 0)[0] == []


def test_the_examples_are_there():
    examples = json.loads((SPACE / "demo" / "examples" / "examples.json").read_text())
    named = [row[0] for kind in ("small", "large") for tab in ("edit", "ask") for row in examples[kind][tab]]
    assert named and all((SPACE / "demo" / "examples" / name).is_file() for name in named)
