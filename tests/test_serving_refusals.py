"""Refusals: hostile images and requests, wrong keys, addresses, and clients that stall."""

from __future__ import annotations

import base64
import http.server
import io
import json
import socket
import threading
import time

import pytest
from hypothesis import given, strategies as st
from PIL import Image
from tiny_models import FAMILIES, picture


pytest.importorskip("openai", reason="the official client is in the extra synthesis")
pytest.importorskip("fastapi", reason="the server needs the extra serving")

import httpx2  # noqa: E402
from openai import AuthenticationError  # noqa: E402
from serving_parts import FAST, data_url, png, served, tiny_pipe, until  # noqa: E402

from uniedit_hf.serving.image_fetcher import ImageFetcher, is_public  # noqa: E402
from uniedit_hf.serving.limits import limits_from  # noqa: E402
from uniedit_hf.serving.server import api_keys  # noqa: E402
from uniedit_hf.serving.server_settings import ServerSettings  # noqa: E402


DRAW = {"prompt": "a red circle", "size": "32x32", "num_timesteps": 4}
EDIT = {"prompt": "paint the circle red", "num_timesteps": 4}
ASK = {"max_tokens": 2}


@pytest.fixture(scope="module")
def server():
    limits = {"max_megapixels": 1.0, "max_body_megabytes": 2.0, "max_characters": 200, "max_new_tokens": 64}
    with served(tiny_pipe(), **limits, max_timesteps=20, max_images=2, batch_tokens=60) as server:
        yield server


def post(server, path: str, body, **options) -> httpx2.Response:
    return httpx2.post(f"{server.address}/v1/{path}", json=body, timeout=60, **options)


def ask(server, *parts, **options) -> httpx2.Response:
    return post(server, "chat/completions", {"messages": [{"role": "user", "content": list(parts)}], **ASK, **options})


def image_part(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def refused(response: httpx2.Response, status: int, words: str) -> dict:
    """The error of a refusal, in OpenAI's form: one sentence or two, no traceback, no path."""
    error = response.json()["error"]
    assert response.status_code == status, error
    assert set(error) == {"message", "type", "param", "code"} and words in error["message"], error
    assert "Traceback" not in response.text and ".py" not in response.text and len(error["message"]) < 700
    return error


def lives(server) -> bool:
    return post(server, "images/generations", DRAW).status_code == 200


# ---- images


def bad_files() -> dict[str, bytes]:
    black, animation = io.BytesIO(), io.BytesIO()
    Image.new("L", (20_000, 10_000)).save(black, "PNG")  # 200 megapixels in some kilobytes
    frames = [picture(seed=seed) for seed in range(3)]
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    return {
        "text": b"I am a text.",
        "empty": b"",
        "huge": black.getvalue(),
        "large": png(picture(1200, 1000)),
        "animation": animation.getvalue(),
        "cut": png(picture(200, 200))[:-500],
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    }


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("text", "not an image that can be read"),
        ("empty", "not an image that can be read"),
        ("huge", "the limit of 1,000,000"),
        ("large", "the limit of 1,000,000"),
        ("animation", "animation of 3 frames"),
        ("cut", "cannot be read"),
        ("svg", "not an image that can be read"),
    ],
)
def test_bad_images(server, kind, words):
    data = bad_files()[kind]
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    form = {"data": {"prompt": EDIT["prompt"]}, "files": {"image": ("a.png", data, "image/png")}}
    refused(httpx2.post(f"{server.address}/v1/images/edits", **form, timeout=60), 400, words)
    if kind != "empty":
        refused(post(server, "images/edits", {**EDIT, "image": url}), 400, words)
        refused(ask(server, image_part(url), {"type": "text", "text": "what"}), 400, words)
    assert lives(server)


def test_a_photo_with_a_second_image_inside_is_read(server):
    """Phones save a JPEG with depth or a second exposure behind it, which is not an animation."""
    file = io.BytesIO()
    picture(64, 48).save(file, "MPO", save_all=True, append_images=[picture(64, 48, seed=1)])
    form = {"data": {k: str(v) for k, v in EDIT.items()}, "files": {"image": ("a.jpg", file.getvalue(), "image/jpeg")}}
    assert httpx2.post(f"{server.address}/v1/images/edits", **form, timeout=60).status_code == 200


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1/a.png", "this server fetches nothing"),
        ("https://example.com/a.png", "this server fetches nothing"),
        ("file:///etc/passwd", "this server fetches nothing"),
        ("FTP://example.com/a.png", "this server fetches nothing"),
        ("/etc/passwd", "not valid base64"),
        ("../../etc/passwd", "not valid base64"),
        ("data:text/plain,hello", "not base64"),
        ("data:image/png;base64,####", "not valid base64"),
        ("data:", "not base64"),
        ("héllo", "not valid base64"),
    ],
)
def test_no_address_and_no_file_is_read(server, url, words):
    refused(ask(server, image_part(url), {"type": "text", "text": "what"}), 400, words)
    refused(post(server, "images/edits", {**EDIT, "image": url}), 400, words)


# ---- requests


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("images/generations", {**DRAW, "prompt": ""}, "prompt is empty"),
        ("images/generations", {**DRAW, "prompt": " \n"}, "prompt is empty"),
        ("images/generations", {**DRAW, "prompt": "a " * 500}, "1,000 characters; up to 200"),
        ("images/generations", {**DRAW, "prompt": 7}, "prompt"),
        ("images/generations", {"size": "32x32"}, "prompt: Field required"),
        ("images/generations", {**DRAW, "n": 0}, "n: "),
        ("images/generations", {**DRAW, "n": 3}, "draws up to 2"),
        ("images/generations", {**DRAW, "n": 10**30}, "draws up to 2"),
        ("images/generations", {**DRAW, "size": "999999x999999"}, "cannot be drawn"),
        ("images/generations", {**DRAW, "size": "33x32"}, "cannot be drawn"),
        ("images/generations", {**DRAW, "size": "0x0"}, "cannot be drawn"),
        ("images/generations", {**DRAW, "size": "big"}, "size is auto, or width and height"),
        ("images/generations", {**DRAW, "size": "٣٢x٣٢"}, "size is auto, or width and height"),
        ("images/generations", {**DRAW, "seed": -1}, "seed"),
        ("images/generations", {**DRAW, "seed": 2**63}, "seed"),
        ("images/generations", {**DRAW, "num_timesteps": 21}, "num_timesteps is at most 20"),
        ("images/generations", {**DRAW, "num_timesteps": 1}, "2 or more"),
        ("images/generations", {**DRAW, "num_timesteps": "many"}, "num_timesteps"),
        ("images/generations", {**DRAW, "text_guidance_scale": 0.5}, "guidance starts at 1"),
        ("images/generations", {**DRAW, "guidance_interval": [0.4]}, "guidance_interval"),
        ("images/generations", {**DRAW, "guidance_interval": {"a": 1}}, "guidance_interval"),
        ("images/generations", {**DRAW, "guidance_renorm": "none"}, "guidance_renorm"),
        ("images/generations", {**DRAW, "cfg_text_scale": 4}, "no field 'cfg_text_scale'"),
        ("images/generations", {**DRAW, "style": "vivid"}, "no field 'style'"),
        ("images/generations", {**DRAW, "width": 64}, "no field 'width'"),
        ("images/generations", {**DRAW, "response_format": "url"}, "response_format"),
        ("images/generations", {**DRAW, "quality": "high"}, "quality"),
        ("images/generations", {**DRAW, "background": "transparent"}, "background"),
        ("images/generations", {**DRAW, "partial_images": 2}, "set stream to true"),
        ("images/generations", {**DRAW, "stream": True, "n": 2}, "a stream shows one image"),
        ("images/generations", {**DRAW, "size": "128x128"}, "tokens"),
        ("images/generations", {**DRAW, "thinking_budget": 65}, "thinking_budget is at most 64"),
        ("images/generations", [1, 2], "JSON object"),
        ("images/generations", None, "JSON object"),
        ("images/edits", EDIT, "0 images"),
        ("images/edits", {**EDIT, "image": data_url(picture()), "images": [{"image_url": "x"}]}, "2 images"),
        ("images/edits", {**EDIT, "image": data_url(picture()), "mask": "x"}, "no field 'mask'"),
        ("images/edits", {**EDIT, "image": data_url(picture()), "source_views": ["x"]}, "no view 'x'"),
        ("images/edits", {**EDIT, "image": data_url(picture()), "source_views": []}, "source_views"),
        ("images/edits", {**EDIT, "image": [data_url(picture())]}, "image"),
        ("chat/completions", {"messages": []}, "messages"),
        ("chat/completions", {"messages": "hello"}, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": " "}]}, "messages is empty"),
        ("chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x" * 300}]}, "characters"),
        ("chat/completions", {"messages": [{"role": "assistant", "content": "x"}]}, "end the conversation"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "content"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 65}, "at most 64"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}, "max_tokens"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "temperature": -1}, "temperature"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "top_p": 0}, "top_p"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "n": 2}, "n"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "tools": []}, "tools"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "logprobs": True}, "logprobs"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "stop": ["a"] * 5}, "stop"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "stop": ""}, "stop"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "stop": 5}, "stop"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "seed": "x"}, "seed"),
    ],
)  # fmt: skip
def test_bad_requests(server, path, body, words):
    refused(post(server, path, body), 400, words)


def test_numbers_that_are_none(server):
    for value in ("NaN", "Infinity", "-Infinity", "1e999"):
        body = json.dumps(DRAW)[:-1] + f', "text_guidance_scale": {value}}}'
        headers = {"Content-Type": "application/json"}
        response = httpx2.post(f"{server.address}/v1/images/generations", content=body, headers=headers)
        refused(response, 400, "")
        body = json.dumps({"messages": [{"role": "user", "content": "x"}]})[:-1] + f', "temperature": {value}}}'
        response = httpx2.post(f"{server.address}/v1/chat/completions", content=body, headers=headers)
        refused(response, 400, "")
    assert lives(server)


def test_a_drawing_that_overflows_harms_nobody_else(server):
    """Guidance beyond all measure gives pixels that are not numbers; those who share its batch get their images."""
    found = []

    def draw(scale: float) -> None:
        found.append((scale, post(server, "images/generations", {**DRAW, "seed": 1, "text_guidance_scale": scale})))

    threads = [threading.Thread(target=draw, args=[scale]) for scale in (2.0, 3.0, 1e38, 4.0)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    by_scale = dict(found)
    assert [by_scale[scale].status_code for scale in (2.0, 3.0, 4.0)] == [200] * 3
    assert by_scale[1e38].status_code in (200, 400)
    assert lives(server)


ODD_TEXTS = (
    "<|im_end|><|im_start|><|vision_start|><|vision_end|><|endoftext|>",
    "<image_placeholder><begin_of_image><end_of_image><eos><pad>",
    "\x00\x01\x02",
    "\U0001f600 \u202e \U000e0001",
    "paint " * 30,
    "</think><think>",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_markers_and_odd_signs_in_a_text_are_only_text(family):
    with served(tiny_pipe(family)) as server:
        for text in ODD_TEXTS:
            content = [image_part(data_url(picture())), {"type": "text", "text": text}]
            for path, body in (
                ("images/generations", {"prompt": text, "seed": 1, **FAST[family]}),
                ("images/edits", {"prompt": text, "image": data_url(picture()), "seed": 1, **FAST[family]}),
                ("chat/completions", {"messages": [{"role": "user", "content": content}], "max_tokens": 3}),
            ):
                response = post(server, path, body)
                assert response.status_code in (200, 400), response.text


def test_lone_surrogates_are_refused(server):
    body = b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 2}'
    headers = {"Content-Type": "application/json"}
    response = httpx2.post(f"{server.address}/v1/chat/completions", content=body, headers=headers)
    refused(response, 400, "half a character")
    assert lives(server)


@pytest.mark.parametrize("kind", ["generations", "edits", "chat"])
def test_bodies_that_are_not_json(server, kind):
    path = {"chat": "chat/completions"}.get(kind, f"images/{kind}")
    headers = {"Content-Type": "application/json"}
    for body in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b'{"prompt": "a", "prompt"}'):
        response = httpx2.post(f"{server.address}/v1/{path}", content=body, headers=headers, timeout=60)
        refused(response, 400, "")
    assert lives(server)


def test_forms_that_are_broken(server):
    address = f"{server.address}/v1/images/edits"
    for kind, body in (
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=x", b"x"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\na'),
        ("multipart/form-data; boundary=" + "x" * 5000, b"x"),
    ):
        refused(httpx2.post(address, content=body, headers={"Content-Type": kind}), 400, "")
    refused(httpx2.post(address, content=b"x", headers={"Content-Type": "text/plain"}), 415, "multipart/form-data")
    many = [(f"f{number}", "x") for number in range(200)]
    refused(httpx2.post(address, files=[(name, (None, value)) for name, value in many]), 400, "fields")
    file = ("a.png", png(picture()), "image/png")
    refused(httpx2.post(address, files=[("image", file)] * 20, data=EDIT), 400, "files")
    refused(httpx2.post(address, files={"mask": file, "image": file}, data=EDIT), 400, "only image is read")
    assert lives(server)


def test_a_body_that_is_too_large(server):
    large = {"Content-Type": "application/json"}
    response = httpx2.post(f"{server.address}/v1/images/edits", content=b"x" * 3_000_000, headers=large)
    refused(response, 413, "larger than 2 MB")

    def chunks():
        for _ in range(100):
            yield b" " * 100_000

    try:
        response = httpx2.post(f"{server.address}/v1/chat/completions", content=chunks(), headers=large)
        refused(response, 413, "larger than 2 MB")
    except httpx2.WriteError:
        pass  # the server had answered and hung up before all was sent
    assert lives(server)


def test_other_paths_and_methods(server):
    refused(httpx2.get(f"{server.address}/v1/images/generations"), 405, "Method Not Allowed")
    refused(httpx2.get(f"{server.address}/v1/files/../../etc/passwd"), 404, "Not Found")
    refused(httpx2.get(f"{server.address}/docs"), 404, "Not Found")


# ---- keys


KEYS = ("first-key-of-ten", "zweiter-schlüssel")


def test_keys(caplog):
    with served(tiny_pipe(), keys=KEYS) as server, caplog.at_level("INFO"):
        for key in KEYS:
            headers = {b"Authorization": f"Bearer {key}".encode()}
            assert httpx2.get(f"{server.address}/v1/models", headers=headers).status_code == 200
        assert server.client(KEYS[0]).images.generate(prompt="a red", extra_body={"num_timesteps": 2}).data
        with pytest.raises(AuthenticationError, match="key is missing or wrong"):
            server.client("first-key-of-te").models.list()
        for headers in ({}, {"Authorization": KEYS[0]}, {"Authorization": f"Basic {KEYS[0]}"}):
            refused(httpx2.get(f"{server.address}/v1/models", headers=headers), 401, "key is missing")
        refused(httpx2.get(f"{server.address}/v1/models?api_key={KEYS[0]}"), 401, "key is missing")
        refused(post(server, f"images/generations?key={KEYS[0]}", DRAW), 401, "key is missing")
        assert httpx2.get(f"{server.address}/health").status_code == 200
        assert httpx2.get(f"{server.address}/metrics").status_code == 200
        assert KEYS[0] not in httpx2.get(f"{server.address}/metrics").text
    ours = [each.getMessage() for each in caplog.records if each.name.startswith(("uniedit", "uvicorn"))]
    assert len(ours) > 8 and not any(key in line for line in ours for key in KEYS)


def test_keys_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("SOME_KEYS", " first-key-of-ten, second-key-of-ten,")
    assert api_keys("SOME_KEYS") == ["first-key-of-ten", "second-key-of-ten"] and api_keys("NO_KEYS") == []
    monkeypatch.setenv("SOME_KEYS", "short")
    with pytest.raises(ValueError, match="fewer than 8 characters"):
        api_keys("SOME_KEYS")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"port": 70_000}, "port is 70000"),
        ({"port": -1}, "port is -1"),
        ({"limits": {"request_seconds": float("nan")}}, "request_seconds cannot be used"),
        ({"limits": {"max_images": 0}}, "max_images cannot be used"),
        ({"limits": {"max_imagse": 1}}, "no limit max_imagse: choose from batch_tokens"),
    ],
)
def test_settings_that_make_no_sense(options, words):
    with pytest.raises(ValueError, match=words):
        limits_from(ServerSettings(model="tiny", **options).limits)


# ---- addresses


@pytest.mark.parametrize(
    ("address", "public"),
    [("8.8.8.8", True), ("2606:4700::1", True), ("::ffff:8.8.8.8", True), ("64:ff9b::808:808", True)]
    + [(each, False) for each in (
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1",
        "192.0.0.8", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1",
        "fec0::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
        "2001::1", "::7f00:1",
    )],
)  # fmt: skip
def test_public_addresses(address, public):
    assert is_public(address) is public


@given(st.ip_addresses(v=4))
def test_an_address_inside_another_is_judged_as_itself(address):
    inside = int(address)
    for form in (f"::ffff:{address}", f"64:ff9b::{inside >> 16:x}:{inside & 0xFFFF:x}"):
        assert is_public(form) == is_public(str(address))
    assert not is_public(f"2002:{inside >> 16:x}:{inside & 0xFFFF:x}::1") or is_public(str(address))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:{port}/a.png", "private network"),
        ("http://localhost:{port}/a.png", "private network"),
        ("http://2130706433:{port}/a.png", "private network"),
        ("http://0x7f.1:{port}/a.png", "private network"),
        ("http://0:{port}/a.png", "private network"),
        ("http://[::1]:{port}/a.png", "private network"),
        ("http://[::ffff:127.0.0.1]:{port}/a.png", "private network"),
        ("http://user:secret@127.0.0.1:{port}/a.png", "private network"),
        ("http://169.254.169.254/latest/meta-data", "private network"),
        ("http://no-such-name.invalid/a.png", "could not be fetched"),
        ("http://", "could not be fetched"),
        ("https://[::1", "could not be fetched"),
        ("file:///etc/passwd", "neither http nor https"),
        ("gopher://127.0.0.1/", "neither http nor https"),
    ],
)  # fmt: skip
def test_private_networks_are_never_asked(url, words, images_elsewhere):
    with served(tiny_pipe(), fetch_images=True) as server:
        sent = url.format(port=images_elsewhere.port)
        error = refused(ask(server, image_part(sent), {"type": "text", "text": "what"}), 400, words)
        assert "secret" not in error["message"]
    assert images_elsewhere.asked == []


class ImagesElsewhere(http.server.BaseHTTPRequestHandler):
    """Another server on loopback, with images and ill will."""

    asked: list[str] = []

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.asked.append(self.path)
        if self.path == "/moved.png":
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/image.png")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        try:
            if self.path == "/image.png":
                self.wfile.write(png(picture(64, 48)))
            elif self.path == "/endless.png":
                for _ in range(1000):
                    self.wfile.write(b"x" * 100_000)
            elif self.path == "/slow.png":
                for _ in range(100):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.1)
        except OSError:
            pass  # hung up on, as it should be


@pytest.fixture
def images_elsewhere():
    handler = type("Handler", (ImagesElsewhere,), {"asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.port = server.server_port
    yield handler
    server.shutdown()
    server.server_close()


def test_fetching_where_it_is_allowed(images_elsewhere):
    """With loopback taken for public: an image arrives; redirects, too many bytes and too much time are refused."""
    import asyncio

    fetcher = ImageFetcher(1_000_000, 1.0, allowed=lambda address: True)
    address = f"http://localhost:{images_elsewhere.port}"
    assert asyncio.run(fetcher.fetch(f"{address}/image.png", "image")) == png(picture(64, 48))
    for path, words in (
        ("moved", "status 302"), ("endless", "larger than 1 MB"), ("slow", "did not arrive within 1 seconds"),
    ):  # fmt: skip
        with pytest.raises(Exception, match=words):
            asyncio.run(fetcher.fetch(f"{address}/{path}.png", "image"))
    assert images_elsewhere.asked == ["/image.png", "/moved.png", "/endless.png", "/slow.png"]


# ---- clients that stall


def stalled(server, sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(sent)
    return connection


def closed(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        while connection.recv(65536):
            pass
        return True
    except TimeoutError:
        return False
    except OSError:
        return True


def test_clients_that_never_finish_what_they_send_are_cut_off():
    head = (
        b"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    )
    with served(tiny_pipe(), upload_seconds=0.5) as server:
        connections = [stalled(server, sent) for sent in (b"", b"POST /v1", head[:-2], head, head + b"{")]
        assert all(closed(each, 20) for each in connections)
        assert until(lambda: not server.server.server_state.connections)
        assert server.service.metrics.in_flight._value.get() == 0
        assert lives(server)


def test_a_client_that_never_reads_is_cut_off():
    body = json.dumps({"prompt": "a red circle", "num_timesteps": 2, "n": 4}).encode()
    request = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request += b"Content-Length: %d\r\n\r\n" % len(body) + body
    with served(tiny_pipe(), send_seconds=0.5) as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(request * 100)  # a hundred answers, none of them read
        assert until(lambda: server.server.server_state.connections)
        assert until(lambda: not server.server.server_state.connections, 60)
        assert until(lambda: server.service.metrics.in_flight._value.get() == 0)
        assert lives(server)
        connection.close()
