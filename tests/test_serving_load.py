"""Many clients at once: batches of mixed settings, full queues, clients that leave, and nothing lost or mixed up."""

from __future__ import annotations

import gc
import json
import random
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from tiny_models import FAMILIES, picture


pytest.importorskip("openai", reason="the official client is in the extra synthesis")
pytest.importorskip("fastapi", reason="the server needs the extra serving")

import httpx2  # noqa: E402
from openai import APIStatusError, BadRequestError, RateLimitError  # noqa: E402
from serving_parts import FAST, Served, data_url, opened, png, same, served, tiny_pipe, until  # noqa: E402


LONG = {"prompt": "a red circle", "num_timesteps": 4999, "size": "128x128"}  # more than anybody waits for
SIZES = {"bagel": ["32x32", "64x48", "48x80", "96x96"], "janus": ["32x32", "32x24", "20x32"]}
WORDS = ("paint", "the", "red", "blue", "circle", "bigger", "square", "two")


def value(server: Served, name: str, **labels) -> float:
    """A figure as Prometheus would read it."""
    return server.service.metrics.registry.get_sample_value(f"uniedit_{name}", labels or None) or 0.0


def post(server: Served, path: str, body: dict, **options) -> httpx2.Response:
    return httpx2.post(f"{server.address}/v1/{path}", json=body, timeout=120, **options)


# ---- batches


@pytest.mark.parametrize("family", FAMILIES)
def test_requests_of_any_settings_share_a_batch(family):
    """Sizes, seeds, guidance, lengths and draws differ; each result is what it would be alone."""
    pipe, rng = tiny_pipe(family), random.Random(0)
    scales = [1.0, 1.5, 2.5, 4.0]
    drawings = [
        {"seed": number, "size": rng.choice(SIZES[family]), "text_guidance_scale": scales[number]}
        for number in range(4)
    ]  # fmt: skip
    with served(tiny_pipe(family), batch_wait=0.5) as server:
        client = server.client()

        def draw(settings: dict):
            own = {name: value for name, value in settings.items() if name != "size"}
            made = client.images.generate(
                prompt="a red circle", size=settings["size"], extra_body={**own, **FAST[family]}
            )
            return made.data[0].b64_json

        def ask(number: int):
            words = " ".join(WORDS[: number + 2])
            made = client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": words}], max_tokens=3 + 4 * number,
                temperature=[0.0, 2.0][number % 2], seed=number,
            )  # fmt: skip
            return made.choices[0].message.content, made.usage.completion_tokens

        with ThreadPoolExecutor(4) as pool:
            drawn = list(pool.map(draw, drawings))
            answered = list(pool.map(ask, range(4)))
        assert (
            value(server, "batch_size_sum", verb="generate") == 4 > value(server, "batch_size_count", verb="generate")
        )
        assert value(server, "batch_size_sum", verb="chat") == 4 > value(server, "batch_size_count", verb="chat")
        alone = [ask(number) for number in range(4)]
    for found, settings in zip(drawn, drawings):
        size = tuple(map(int, settings["size"].split("x")))
        assert same(opened(found), pipe.generate("a red circle", **settings | {"size": size}, **FAST[family]))
    assert answered == alone
    assert answered[2][0] == pipe.answer(None, " ".join(WORDS[:4]), max_new_tokens=11)


def test_the_oldest_goes_first_and_tokens_bound_a_batch():
    """36 and 6 tokens a drawing: two large ones do not fit side by side."""
    with served(tiny_pipe(), batch_wait=0.5, batch_tokens=90) as server:
        bodies = [{"prompt": "a red circle", "size": "96x96", "num_timesteps": 3, "seed": n} for n in range(4)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda body: post(server, "images/generations", body).status_code, bodies))
        assert found == [200] * 4
        assert value(server, "batch_size_count", verb="generate") >= 2


# ---- full queues, time, and clients that leave


def busy(server: Served, **changes) -> threading.Thread:
    """A drawing that takes long, under way."""
    thread = threading.Thread(target=lambda: post(server, "images/generations", LONG | changes), daemon=True)
    thread.start()
    assert until(lambda: value(server, "jobs_running") > 0)
    return thread


def leave(server: Served, path: str, body: dict) -> socket.socket:
    """A request whose connection the caller may close."""
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", server.port))
    head = (
        f"POST /v1/{path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    connection.sendall(head.encode() + data)
    return connection


def test_a_full_queue_says_when_to_come_again():
    with served(tiny_pipe(), max_timesteps=5000, max_requests=3, batch_size=1) as server:
        waiting = [leave(server, "images/generations", LONG) for _ in range(3)]
        assert until(lambda: value(server, "requests_in_flight") == 3)
        response = post(server, "images/generations", LONG)
        assert response.status_code == 429 and int(response.headers["Retry-After"]) >= 1
        assert response.json()["error"]["code"] == "server_busy"
        with pytest.raises(RateLimitError):
            server.client().images.generate(prompt="a red circle")
        assert httpx2.get(f"{server.address}/health").status_code == 200
        for each in waiting:
            each.close()
        assert until(lambda: value(server, "requests_in_flight") == 0)
        assert post(server, "images/generations", LONG | {"num_timesteps": 3}).status_code == 200
        # four images at once do not fit into a queue of three either
        assert post(server, "images/generations", LONG | {"num_timesteps": 3, "n": 4}).status_code == 429


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("images/generations", LONG),
        ("images/generations", LONG | {"stream": True, "partial_images": 3, "num_timesteps": 1999}),
        ("images/edits", LONG | {"image": data_url(picture(96, 96))}),
        ("chat/completions", {"messages": [{"role": "user", "content": "what"}], "max_tokens": 2000}),
        ("chat/completions", {"messages": [{"role": "user", "content": "what"}], "max_tokens": 2000, "stream": True}),
    ],
)
def test_who_leaves_ends_the_work(path, body):
    with served(tiny_pipe(), max_timesteps=5000) as server:
        connection = leave(server, path, body)
        assert until(lambda: value(server, "jobs_running") == 1)
        if body.get("stream"):
            assert connection.recv(100)
        connection.close()
        begun = time.monotonic()
        assert until(lambda: value(server, "jobs_running") == 0)
        assert value(server, "jobs_cancelled_total") == 1 and time.monotonic() - begun < 10
        assert until(lambda: value(server, "requests_in_flight") == 0)


def test_who_leaves_while_waiting_never_runs():
    with served(tiny_pipe(), max_timesteps=5000, batch_size=1) as server:
        running = busy(server, num_timesteps=60)
        waiting = leave(server, "images/generations", LONG)
        assert until(lambda: value(server, "jobs_waiting") == 1)
        waiting.close()
        running.join()
        assert until(lambda: value(server, "jobs_cancelled_total") == 1)
        assert value(server, "images_total") == 1


def test_one_of_a_batch_leaves_and_the_others_stay():
    with served(tiny_pipe(), max_timesteps=5000, batch_wait=0.5) as server:
        connection = leave(server, "images/generations", LONG | {"num_timesteps": 40, "seed": 1})
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(post, server, "images/generations", LONG | {"num_timesteps": 40, "seed": 2})
            assert until(lambda: value(server, "jobs_running") == 2)
            connection.close()
            found = other.result()
    expected = tiny_pipe().generate(LONG["prompt"], size=(128, 128), seed=2, num_timesteps=40)
    assert same(opened(found.json()["data"][0]["b64_json"]), expected)


@pytest.mark.parametrize("stream", [False, True])
def test_time_runs_out(stream):
    with served(tiny_pipe(), max_timesteps=5000, request_seconds=0.4, batch_size=1) as server:
        body = {"messages": [{"role": "user", "content": "what"}], "max_tokens": 2000, "stream": stream}
        for path, asked in (("images/generations", LONG | {"stream": stream}), ("chat/completions", body)):
            response = post(server, path, asked)
            told = response.text
            assert "took longer than 0.4 seconds" in told
            assert response.status_code == (200 if stream and path.startswith("chat") else 504)
        assert until(lambda: value(server, "jobs_running") == 0)
        assert post(server, "images/generations", LONG | {"num_timesteps": 2}).status_code == 200


# ---- two hundred requests


class Crowd:
    """Clients that ask, leave and break off, with what they received and what the pipeline gives.

    Args:
        server: The server under test.
        family: The family of its model.
        seed: Decides everything that they do.
    """

    def __init__(self, server: Served, family: str, seed: int):
        self.server, self.family, self.seed = server, family, seed
        self.pipe = tiny_pipe(family)
        self.lock = threading.Lock()
        self.happened: Counter[str] = Counter()
        self.checks: list[tuple] = []
        self.most = 0.0

    def run(self, clients: int, requests: int) -> None:
        """All clients at once, so many requests each; then every result is compared with the pipeline's own."""
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=[over])
        watch.start()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(self._client, range(clients), [requests] * clients))
        over.set()
        watch.join()
        for kind, found, arguments in self.checks:
            expected = getattr(self.pipe, kind)(**arguments)
            assert found == expected if kind == "answer" else same(opened(found), expected), (kind, arguments)

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(0.005):
            held = value(self.server, "requests_in_flight"), value(self.server, "jobs_waiting")
            self.most = max(self.most, *held)

    def _client(self, number: int, requests: int) -> None:
        rng, client = random.Random(f"{self.seed} {number}"), self.server.client()
        acts = (
            self._draw,
            self._edit,
            self._ask,
            self._ask_in_a_stream,
            self._leave,
            self._break_off,
            self._upload_trash,
        )
        for _ in range(requests):
            act = rng.choice(acts)
            while True:
                try:
                    act(rng, client)
                except RateLimitError as error:
                    assert error.response.headers["Retry-After"]
                    self._count("busy")
                    time.sleep(0.05 * rng.random())
                    continue
                break
            self._count(act.__name__.strip("_"))

    def _count(self, what: str) -> None:
        with self.lock:
            self.happened[what] += 1

    def _check(self, kind: str, found, **arguments) -> None:
        with self.lock:
            self.checks.append((kind, found, arguments))

    def _settings(self, rng: random.Random) -> dict:
        steps = {"num_timesteps": rng.choice([3, 4])} if self.family == "bagel" else {}
        return {"seed": rng.randrange(10**6), "text_guidance_scale": rng.choice([1.0, 2.0, 3.5]), **steps}

    def _draw(self, rng: random.Random, client) -> None:
        settings, size = self._settings(rng), rng.choice(SIZES[self.family])
        prompt = " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))
        made = client.images.generate(prompt=prompt, size=size, extra_body=settings)
        wanted = tuple(map(int, size.split("x")))
        self._check("generate", made.data[0].b64_json, prompt=prompt, size=wanted, **settings)

    def _edit(self, rng: random.Random, client) -> None:
        settings = self._settings(rng)
        source = picture(rng.choice([32, 64, 90]), rng.choice([40, 64, 96]), seed=rng.randrange(1000))
        words = " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))
        file = ("source.png", png(source), "image/png")
        made = client.images.edit(image=file, prompt=words, extra_body=settings)
        self._check("edit", made.data[0].b64_json, image=source, instruction=words, **settings)

    def _question(self, rng: random.Random) -> tuple[dict, dict]:
        words = " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))
        source = picture(rng.choice([32, 64]), rng.choice([40, 64]), seed=rng.randrange(1000))
        tokens = rng.randint(1, 12)
        parts = [{"type": "image_url", "image_url": {"url": data_url(source)}}, {"type": "text", "text": words}]
        asked = {"model": "tiny", "messages": [{"role": "user", "content": parts}], "max_tokens": tokens}
        return asked, {"image": source, "question": words, "max_new_tokens": tokens}

    def _ask(self, rng: random.Random, client) -> None:
        asked, arguments = self._question(rng)
        self._check("answer", client.chat.completions.create(**asked).choices[0].message.content, **arguments)

    def _ask_in_a_stream(self, rng: random.Random, client) -> None:
        asked, arguments = self._question(rng)
        pieces = [each.choices[0].delta.content or "" for each in client.chat.completions.create(**asked, stream=True)]
        self._check("answer", "".join(pieces), **arguments)

    def _leave(self, rng: random.Random, client) -> None:
        long = LONG if self.family == "bagel" else {"prompt": "a red circle"}
        connection = leave(self.server, "images/generations", long)
        time.sleep(0.1 * rng.random())
        connection.close()

    def _break_off(self, rng: random.Random, client) -> None:
        """An upload that ends in the middle."""
        connection = socket.create_connection(("127.0.0.1", self.server.port))
        head = b"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += b"Content-Length: 90000\r\n\r\n"
        connection.sendall((head + b'{"image": "' + b"A" * 50_000)[: rng.randint(1, 50_000)])
        time.sleep(0.05 * rng.random())
        connection.close()

    def _upload_trash(self, rng: random.Random, client) -> None:
        data = rng.randbytes(rng.randint(1, 5000))
        with pytest.raises(BadRequestError):
            try:
                client.images.edit(image=("a.png", data, "image/png"), prompt="paint")
            except RateLimitError:
                raise
            except APIStatusError as error:
                assert error.status_code == 400
                raise


@pytest.mark.parametrize(("family", "requests"), [("bagel", 10), pytest.param("janus", 10, marks=pytest.mark.slow)])
def test_a_crowd_is_served(family, requests):
    """200 requests of 20 clients, and one that never reads: none lost, none mixed up, memory and queue bounded."""
    with served(
        tiny_pipe(family), max_timesteps=5000, max_requests=12, send_seconds=2.0, upload_seconds=5.0
    ) as server:
        Crowd(server, family, seed=0).run(clients=8, requests=4)  # libraries and allocators have what they keep
        gc.collect()
        before, threads = psutil.Process().memory_info().rss, threading.active_count()
        deaf = leave(server, "images/generations", {"prompt": "a red circle", "n": 4, **FAST[family]})
        crowd = Crowd(server, family, seed=1)
        crowd.run(clients=20, requests=requests)
        deaf.close()
        happened = crowd.happened
        assert happened.total() - happened["busy"] == 20 * requests
        assert len(crowd.checks) == sum(happened[each] for each in ("draw", "edit", "ask", "ask_in_a_stream"))
        assert len(crowd.checks) > 20 * requests / 3 and min(happened.values()) > 0
        assert 0 < crowd.most <= 12
        assert until(lambda: value(server, "requests_in_flight") == 0 and value(server, "jobs_running") == 0)
        assert until(lambda: not server.server.server_state.connections)
        assert value(server, "jobs_waiting") == value(server, "jobs_failed_total") == 0
        gc.collect()
        assert psutil.Process().memory_info().rss - before < 60e6
        assert threading.active_count() <= threads + 4  # those that open images stay
        assert httpx2.get(f"{server.address}/health").status_code == 200
