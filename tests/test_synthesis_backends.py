"""Every remote backend over real HTTP: answers, refusals, failures that pass and those that do not; the call cache."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sqlite3
import time

import pytest
from model_server import IMAGE_FORMS, Behaviour, ModelServer
from PIL import Image

from uniedit_hf.calls.budget import Budget
from uniedit_hf.calls.cache import CallCache, Spent
from uniedit_hf.calls.caller import FAILURES_IN_A_ROW, Caller, NoAnswer
from uniedit_hf.calls.failures import sorted_failure, without_key
from uniedit_hf.calls.messages import (
    BackendError,
    ChatRequest,
    EditRequest,
    EncodedImage,
    PassingFailure,
    Reply,
    RowFailure,
    encoded,
)
from uniedit_hf.synthesis.backends.making import make_backend
from uniedit_hf.synthesis.settings import (
    BudgetSettings,
    GeminiChat,
    GeminiEditor,
    HttpEditor,
    OpenAiChat,
    OpenAiEditor,
    Price,
)
from uniedit_hf.synthesis.stages.verify import Grade, Judgement


KEY = "sk-secret-4242"
SOURCE = EncodedImage(encoded(Image.effect_noise((30, 20), 80).convert("RGB")))
LIMITS = {"model": "m-1", "attempts": 3, "first_wait": 0.01, "timeout": 1.0, "api_key_env": "TEST_BACKEND_KEY"}


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_BACKEND_KEY", KEY)


def chat_settings(server, kind=OpenAiChat, **more):
    if kind is OpenAiChat:
        return kind(kind="openai", base_url=f"{server.address}/v1", **(LIMITS | more))
    return kind(kind="gemini", base_url=server.address, **(LIMITS | more))


def editor_settings(server, kind, **more):
    name, path = {
        OpenAiEditor: ("openai_images", "/v1"),
        GeminiEditor: ("gemini_images", ""),
        HttpEditor: ("http_editor", "/edit"),
    }[kind]
    return kind(kind=name, base_url=server.address + path, **(LIMITS | more))


def call(settings, folder, ask, budget=None):
    """What `ask(caller)` gives, with a backend of its own event loop and a cache in the folder."""

    async def run():
        cache = CallCache(folder / "calls.sqlite", folder / "pictures")
        backend = make_backend("mine", settings)
        caller = Caller("mine", backend, settings, cache, budget or Budget(BudgetSettings()))
        try:
            return await ask(caller)
        finally:
            await backend.close()
            cache.close()

    return asyncio.run(run())


def question(text="Grade this.", form=Grade, pictures=(SOURCE,)):
    return ChatRequest("You grade.", text, form, pictures)


@pytest.mark.parametrize("kind", [OpenAiChat, GeminiChat])
def test_a_chat_model_sees_pictures_and_answers_in_the_form(tmp_path, kind):
    with ModelServer() as server:
        server.keep_requests = True
        ask = question(form=Judgement, pictures=(SOURCE, SOURCE))
        answer = call(chat_settings(server, kind, image_side=16), tmp_path, lambda caller: caller.answer(ask))
        sent = server.requests[0]
    assert isinstance(answer, Judgement)
    body = sent["body"].decode()
    assert body.count("iVBORw0KGgo") == 2 and "Judgement" in body and '"premise"' in body
    assert KEY in " ".join(sent["headers"].values()) and KEY not in body


@pytest.mark.parametrize("kind", [OpenAiEditor, GeminiEditor, HttpEditor])
def test_an_editor_draws(tmp_path, kind):
    with ModelServer() as server:
        server.keep_requests = True
        request = EditRequest("paint it", SOURCE, (1536, 1024), seed=7)
        reply = call(editor_settings(server, kind), tmp_path, lambda caller: caller.reply(request))
        sent = server.requests[0]["body"]
    assert reply.image.pixels().size in ((30, 20), (60, 20)) and reply.refusal is None
    assert (
        b"paint it" in sent and {OpenAiEditor: b"1536x1024", GeminiEditor: b'"3:2"', HttpEditor: b"1536"}[kind] in sent
    )


@pytest.mark.parametrize("kind", [OpenAiChat, GeminiChat])
def test_other_answers_are_data(tmp_path, kind):
    """A refusal is kept; an answer in another form is asked for again, and kept word for word if it stays so."""
    with ModelServer(Behaviour(others=1.0)) as server:
        asks = [question(f"Grade this {number}.") for number in range(8)]
        settings = chat_settings(server, kind, malformed_attempts=2)
        answers = call(settings, tmp_path, lambda caller: asyncio.gather(*map(caller.answer, asks)))
        again = call(settings, tmp_path, lambda caller: asyncio.gather(*map(caller.answer, asks)))
        assert server.repeated == 0
    assert again == answers and all(isinstance(answer, NoAnswer) for answer in answers)
    reasons = {answer.reason for answer in answers}
    assert reasons == {"the model refused", "the reply does not have the requested form"}
    assert all(answer.reply for answer in answers if "form" in answer.reason)


@pytest.mark.parametrize("kind", [OpenAiEditor, GeminiEditor, HttpEditor])
def test_a_refused_edit_is_data(tmp_path, kind):
    with ModelServer(Behaviour(others=1.0)) as server:
        requests = [EditRequest(f"paint {n}", SOURCE, (64, 64), n) for n in range(6)]
        replies = call(
            editor_settings(server, kind, attempts=1),
            tmp_path,
            lambda caller: asyncio.gather(*map(caller.reply, requests), return_exceptions=True),
        )
    refused = [reply for reply in replies if isinstance(reply, Reply) and reply.refusal]
    assert refused and all(reply.image is None for reply in refused)


@pytest.mark.parametrize("fault", ["busy", "broken", "silent", "cut"])
@pytest.mark.parametrize("kind", [OpenAiChat, GeminiChat])
def test_what_may_pass_is_tried_again_and_then_given_up(tmp_path, kind, fault):
    settings = {"timeout": 0.5}
    with ModelServer(Behaviour(always=fault)) as server:
        answer = call(chat_settings(server, kind, **settings), tmp_path, lambda caller: caller.answer(question()))
        assert isinstance(answer, NoAnswer) and answer.reason == "the call failed" and "3 attempts" in answer.detail
        assert sum(server.tried.values()) == 3
        server.behaviour = Behaviour()
        assert isinstance(
            call(chat_settings(server, kind, **settings), tmp_path, lambda c: c.answer(question())), Grade
        )  # a failure is not kept


@pytest.mark.parametrize("kind", [OpenAiChat, GeminiChat, OpenAiEditor, GeminiEditor, HttpEditor])
@pytest.mark.parametrize(("status", "message"), [(401, "refuses the key"), (404, "knows no model 'm-1'")])
def test_what_cannot_pass_stops_at_once_with_one_sentence(tmp_path, kind, status, message):
    with ModelServer(Behaviour(status=status, message=f"you sent {KEY}")) as server:
        if kind in (OpenAiChat, GeminiChat):
            settings, request = chat_settings(server, kind), question()
        else:
            settings, request = editor_settings(server, kind), EditRequest("paint", SOURCE, (64, 64), 1)
        with pytest.raises(BackendError, match=message) as caught:
            call(settings, tmp_path, lambda caller: caller.reply(request))
        assert sum(server.tried.values()) == 1
    assert KEY not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("form", IMAGE_FORMS)
def test_an_image_is_read_in_every_form_of_the_api(tmp_path, form):
    request = EditRequest("paint it", SOURCE, (64, 64), 1)
    with ModelServer() as server:
        plain = call(editor_settings(server, OpenAiEditor), tmp_path / "plain", lambda caller: caller.reply(request))
        server.behaviour = Behaviour(image_as=form)
        settings = editor_settings(server, OpenAiEditor)
        found = call(settings, tmp_path / "other", lambda caller: caller.reply(request))
        again = call(settings, tmp_path / "other", lambda caller: caller.reply(request))
        assert server.calls == 2 and server.downloads.total() == (form == "url")
        assert all("Authorization" not in each["headers"] for each in server.requests)
    assert found.image == again.image == plain.image and found.refusal is found.text is None


def test_an_image_that_cannot_be_downloaded_is_paid_for_once(tmp_path):
    request = EditRequest("paint it", SOURCE, (64, 64), 1)
    with ModelServer(Behaviour(image_as="url", download=503)) as server:
        settings = editor_settings(server, OpenAiEditor)
        for _ in range(2):
            with pytest.raises(RowFailure, match="paid for and could not be downloaded .HTTP 503.*the same command"):
                call(settings, tmp_path, lambda caller: caller.reply(request))
        server.behaviour = Behaviour()
        reply = call(settings, tmp_path, lambda caller: caller.reply(request))
        assert server.calls == 1 and server.downloads.total() == 2 * LIMITS["attempts"] + 1
    assert reply.image.pixels().size in ((30, 20), (60, 20))


def test_an_image_of_another_host_is_fetched_where_the_settings_name_it(tmp_path):
    request = EditRequest("paint it", SOURCE, (64, 64), 1)
    with ModelServer(Behaviour(image_as="elsewhere")) as server:
        with pytest.raises(BackendError, match="on localhost: add this host to image_hosts"):
            call(editor_settings(server, OpenAiEditor), tmp_path, lambda caller: caller.reply(request))
        assert server.downloads.total() == 0
        settings = editor_settings(server, OpenAiEditor, image_hosts=["localhost"])
        assert call(settings, tmp_path, lambda caller: caller.reply(request)).image is not None
        assert server.calls == 1


def test_a_reply_in_an_unknown_form_is_kept_and_is_not_a_refusal(tmp_path):
    request = EditRequest("paint it", SOURCE, (64, 64), 1)
    with ModelServer(Behaviour(image_as="unknown")) as server:
        replies = [
            call(editor_settings(server, OpenAiEditor), tmp_path, lambda caller: caller.reply(request))
            for _ in range(2)
        ]
        assert server.calls == 1
    assert replies[0] == replies[1] and replies[0].refusal is replies[0].image is None
    assert "image_in_hex" in replies[0].text


def test_our_own_editor_may_send_a_data_url(tmp_path):
    request = EditRequest("paint it", SOURCE, (64, 64), 1)
    with ModelServer(Behaviour(image_as="data url")) as server:
        reply = call(editor_settings(server, HttpEditor), tmp_path, lambda caller: caller.reply(request))
        assert server.calls == 1
    assert reply.image.pixels().size in ((30, 20), (60, 20))


@pytest.mark.parametrize("address", ["https://[::1", "https://images.example:99999999/a.png", "http://"])
def test_an_address_that_is_none_ends_no_run(tmp_path, address):
    with ModelServer() as server:
        backend = make_backend("mine", editor_settings(server, OpenAiEditor))
        body = json.dumps({"data": [{"url": address}]})
        with contextlib.suppress(BackendError):
            assert asyncio.run(backend.read(body)) is None


def test_a_page_instead_of_an_image_is_downloaded_again(tmp_path):
    request = EditRequest("paint it", SOURCE, (64, 64), 1)
    with ModelServer(Behaviour(image_as="url")) as server:
        drawn, server.drawn = server.drawn, Pages(server.drawn)
        settings = editor_settings(server, OpenAiEditor)
        with pytest.raises(RowFailure, match="paid for and could not be downloaded .what is not an image"):
            call(settings, tmp_path, lambda caller: caller.reply(request))
        server.drawn = drawn | server.drawn.kept
        assert call(settings, tmp_path, lambda caller: caller.reply(request)).image is not None
        assert server.calls == 1


class Pages(dict):
    """Gives a page in place of every image, which it keeps."""

    def __init__(self, drawn):
        super().__init__(drawn)
        self.kept: dict[str, bytes] = {}

    def __setitem__(self, path, data):
        self.kept[path] = data
        super().__setitem__(path, b"<html>Sign in</html>")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (OpenAiChat(kind="openai", model="m", arguments={"temprature": 1}), "takes no 'temprature'.*temperature"),
        (OpenAiChat(kind="openai", model="m", arguments={"model": "n"}), "'model' is given by every request"),
        (OpenAiEditor(kind="openai_images", model="m", arguments={"prompt": "n"}), "'prompt' is given by every"),
        (GeminiChat(kind="gemini", model="m", arguments={"top_q": 1}), "takes no 'top_q' among its arguments"),
        (GeminiChat(kind="gemini", model="m", arguments={"temperature": "warm"}), "arguments.temperature: .*number"),
    ],
)
def test_arguments_that_cannot_be_passed_on_are_named_before_a_call(settings, message):
    with pytest.raises(BackendError, match=message) as caught:
        make_backend("mine", settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "place"), [(OpenAiChat, ()), (GeminiChat, ("generationConfig",))])
def test_a_seed_among_the_arguments_goes_on_when_the_form_is_asked_for_again(tmp_path, kind, place):
    with ModelServer(Behaviour(others=1.0)) as server:
        server.keep_requests = True
        settings = chat_settings(server, kind, arguments={"seed": 7}, malformed_attempts=2)
        asks = [question(f"Grade this {number}.") for number in range(8)]
        call(settings, tmp_path, lambda caller: asyncio.gather(*map(caller.answer, asks)))
        bodies = [json.loads(request["body"]) for request in server.requests]
    seeds = {(body[place[0]] if place else body)["seed"] for body in bodies}
    assert seeds == {7, 8}


def test_a_backend_that_answers_no_row_stops_the_run(tmp_path):
    asks = [question(f"Grade {number}.") for number in range(FAILURES_IN_A_ROW + 5)]

    async def ask(caller):
        return await asyncio.gather(*map(caller.answer, asks), return_exceptions=True)

    with ModelServer(Behaviour(status=400, message="no such argument")) as server:
        answers = call(chat_settings(server), tmp_path, ask)
        stopped = [answer for answer in answers if isinstance(answer, BackendError)]
        assert len(answers) - len(stopped) == FAILURES_IN_A_ROW - 1
        first = (
            f"The backend mine answered none of {FAILURES_IN_A_ROW} calls, the last with HTTP 400: no such argument"
        )
        assert any(str(error).startswith(first) for error in stopped)
        server.behaviour = Behaviour()
        call(chat_settings(server), tmp_path, lambda caller: caller.answer(question("Grade 0.")))
        server.behaviour = Behaviour(status=400)

        async def after_one_reply(caller):  # then it is the rows, and each is rejected by itself
            await caller.answer(question("Grade 0."))
            return await asyncio.gather(*map(caller.answer, asks[1:]))

        answers = call(chat_settings(server), tmp_path, after_one_reply)
    assert all(answer.reason == "the call failed" for answer in answers)


def test_a_bad_request_is_the_rows_own(tmp_path):
    with ModelServer(Behaviour(status=400, message=f"too long, {KEY}")) as server:
        answer = call(chat_settings(server), tmp_path, lambda caller: caller.answer(question()))
        assert sum(server.tried.values()) == 1
    assert answer == NoAnswer("the call failed", "HTTP 400: too long, ***")


def test_a_server_that_is_down_stops_the_run(tmp_path):
    with ModelServer() as server:
        settings = chat_settings(server, attempts=1)
    asks = [question(f"Grade {number}.") for number in range(FAILURES_IN_A_ROW + 5)]

    async def ask(caller):
        return [await caller.answer(each) for each in asks]

    with pytest.raises(
        BackendError, match=f"not reached by {FAILURES_IN_A_ROW} calls in a row.*run the same command again"
    ):
        call(settings, tmp_path, ask)


def test_the_same_asked_at_the_same_time_is_one_call(tmp_path):
    with ModelServer() as server:
        answers = call(chat_settings(server), tmp_path, lambda c: asyncio.gather(*[c.answer(question())] * 5))
        assert server.calls == 1 and len(set(map(str, answers))) == 1


def test_a_key_that_a_server_repeats_is_not_kept(tmp_path):
    class Echo:
        parameters, key = "echo", KEY

        async def reply(self, request):
            return Reply("m-1", text=f"you sent {KEY}", refusal=f"not with {KEY}")

    cache = CallCache(tmp_path / "calls.sqlite", tmp_path / "pictures")
    settings = OpenAiChat(kind="openai", model="m-1")

    async def ask():
        return await Caller("mine", Echo(), settings, cache, Budget(BudgetSettings())).reply(question())

    reply = asyncio.run(ask())
    cache.close()
    assert (reply.text, reply.refusal, reply.model) == ("you sent ***", "not with ***", "m-1")
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.iterdir() if file.is_file())


def test_a_missing_key_names_the_variable(monkeypatch):
    monkeypatch.delenv("TEST_BACKEND_KEY")
    with pytest.raises(BackendError, match="environment variable TEST_BACKEND_KEY, which is empty"):
        make_backend("mine", OpenAiChat(kind="openai", **LIMITS))


def test_what_a_status_means():
    kinds = {408: PassingFailure, 429: PassingFailure, 500: PassingFailure, 503: PassingFailure, 400: RowFailure,
             422: RowFailure, 401: BackendError, 403: BackendError, 404: BackendError}  # fmt: skip
    for status, kind in kinds.items():
        assert type(sorted_failure("mine", "m", status, "no", "", "")) is kind
    assert sorted_failure("mine", "m", 429, "no", "2.5", "").wait == 2.5
    assert sorted_failure("mine", "m", 429, "no", "Wed, 21 Oct", "").wait == 0.0
    assert without_key(f"a\n {KEY} b", KEY) == "a *** b" and len(without_key("x" * 999, "")) == 300


def test_the_cache_keeps_replies_and_what_they_cost(tmp_path):
    cache = CallCache(tmp_path / "c.sqlite", tmp_path / "pictures")
    reply = Reply("m", None, SOURCE, None, 3, 4)
    cache.put(b"a" * 32, "draw", reply, 0.5)
    cache.put(b"b" * 32, "chat", Reply("m", "text", refusal="no"), 0.0)
    cache.close()
    cache = CallCache(tmp_path / "c.sqlite", tmp_path / "pictures")
    assert cache.get(b"a" * 32) == reply and cache.get(b"c" * 32) is None
    assert cache.spent() == {"chat": Spent(1, 0, 0.0), "draw": Spent(1, 7, 0.5)}
    next((tmp_path / "pictures").rglob(SOURCE.sha256)).unlink()
    assert cache.get(b"a" * 32) is None  # and not an error: the call is made again
    cache.put(b"a" * 32, "draw", reply, 0.5)
    assert cache.get(b"a" * 32) == reply and cache.spent()["draw"].calls == 1
    cache.close()


def test_a_file_that_is_no_cache_is_named(tmp_path):
    (tmp_path / "c.sqlite").write_text("something else, long enough to be looked at as a header" * 40)
    with pytest.raises(ValueError, match="c.sqlite is not a call cache"):
        CallCache(tmp_path / "c.sqlite", tmp_path)
    sqlite3.connect(tmp_path / "d.sqlite").close()


def test_prices_are_counted(tmp_path):
    budget = Budget(BudgetSettings())
    with ModelServer() as server:
        settings = chat_settings(server, price=Price(tokens_in=10_000, tokens_out=50_000))
        call(settings, tmp_path, lambda caller: caller.answer(question()), budget)
    assert (budget.calls, budget.tokens) == (1, 120) and budget.money == pytest.approx(2.0)


def test_waiting_is_bounded(tmp_path):
    with ModelServer() as server:
        cache = CallCache(tmp_path / "c.sqlite", tmp_path / "p")
        caller = Caller("mine", None, chat_settings(server), cache, Budget(BudgetSettings()))
        waits = [caller._wait(attempt, PassingFailure("no", wait)) for attempt, wait in ((0, 0), (3, 0), (0, 9e9))]
        cache.close()
    assert 0.005 <= waits[0] <= 0.01 and 0.04 <= waits[1] <= 0.08 and waits[2] == 60.0 and time.monotonic() > 0


def test_models_see_pictures_upright_and_on_white():
    """As training sees them: the stored bytes go on only where they are plain RGB."""
    turned = Image.new("RGB", (6, 4), "red")
    exif = turned.getexif()
    exif[0x0112] = 6
    clear = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
    palette = Image.new("P", (6, 4))
    buffers = [io.BytesIO() for _ in range(3)]
    turned.save(buffers[0], "PNG", exif=exif)
    clear.save(buffers[1], "PNG")
    palette.save(buffers[2], "PNG", transparency=0)
    seen = [Image.open(io.BytesIO(EncodedImage(buffer.getvalue()).png())) for buffer in buffers]
    assert [(image.size, image.mode) for image in seen] == [((4, 6), "RGB"), ((6, 4), "RGB"), ((6, 4), "RGB")]
    assert seen[1].getpixel((0, 0)) == seen[2].getpixel((0, 0)) == (255, 255, 255)
    assert SOURCE.png() is SOURCE.data and SOURCE.png(100) is SOURCE.data and SOURCE.png(10) is not SOURCE.data
