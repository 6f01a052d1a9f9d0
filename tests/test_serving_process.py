"""`uniedit serve` as a process of its own: settings from a file, SIGTERM, what it logs, and synthesis through it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from tiny_models import picture


pytest.importorskip("openai", reason="the official client is in the extra synthesis")
pytest.importorskip("fastapi", reason="the server needs the extra serving")

import httpx2  # noqa: E402
from datasets import load_dataset  # noqa: E402
from openai import OpenAI  # noqa: E402
from serving_parts import FAST, opened, png, same, spelling_pipe, tiny_pipe, until  # noqa: E402

from uniedit_hf.cli import main  # noqa: E402
from uniedit_hf.cli.parsing import CommandParser  # noqa: E402
from uniedit_hf.cli.serve import run  # noqa: E402
from uniedit_hf.serving.limits import Limits, limits_from  # noqa: E402
from uniedit_hf.serving.server import load_pipeline  # noqa: E402
from uniedit_hf.serving.server_settings import ServerSettings  # noqa: E402


KEY = "a-key-that-nobody-may-read"
SECRET = "paint the secret red"
SERVE = [sys.executable, "-m", "uniedit_hf.cli", "serve"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "bagel"
    tiny_pipe().save_pretrained(path)
    return path


@contextmanager
def running(folder: Path, tmp_path: Path, **settings) -> Iterator[tuple[subprocess.Popen, str, Path]]:
    """The process, its address and its log."""
    config, log = tmp_path / "serve.yaml", tmp_path / "log.txt"
    config.write_text(yaml.safe_dump({"model": str(folder), "served_name": "tiny", "port": 0} | settings))
    environment = os.environ | {"UNIEDIT_API_KEYS": f"another-key,{KEY}"}
    with log.open("w") as file:
        process = subprocess.Popen(SERVE + ["--config", str(config)], stdout=file, stderr=file, env=environment)
    try:
        assert until(lambda: "Serving tiny at" in log.read_text() or process.poll() is not None, 120), log.read_text()
        address = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())[0]
        assert until(lambda: healthy(address), 60), log.read_text()
        yield process, address, log
    finally:
        process.kill()
        process.wait()


def healthy(address: str) -> bool:
    try:
        return httpx2.get(f"{address}/health").status_code == 200
    except httpx2.HTTPError:
        return False


def connects(address: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=5).close()
        return True
    except OSError:
        return False


def client_of(address: str) -> OpenAI:
    return OpenAI(api_key=KEY, base_url=f"{address}/v1", max_retries=0, timeout=120)


def in_flight(address: str) -> dict[str, float]:
    text = httpx2.get(f"{address}/metrics").text
    return {
        name: float(re.search(rf"^uniedit_{name} (\S+)", text, re.M)[1]) for name in ("jobs_running", "jobs_waiting")
    }


def test_sigterm_finishes_what_runs_and_refuses_the_rest(folder, tmp_path):
    long = {"seed": 1, "num_timesteps": 150}
    drawn, refused = {}, {}
    with running(folder, tmp_path, batch_size=8) as (process, address, log):
        client, headers = client_of(address), {"Authorization": f"Bearer {KEY}"}

        def draw():
            made = client.images.generate(prompt="a red circle", size="128x128", extra_body=long)
            drawn["image"] = made.data[0].b64_json

        def wait():
            body = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 500}
            refused["response"] = httpx2.post(
                f"{address}/v1/chat/completions", json=body, headers=headers, timeout=120
            )

        first = threading.Thread(target=draw)
        first.start()
        assert until(lambda: in_flight(address)["jobs_running"] >= 1)
        second = threading.Thread(target=wait)
        second.start()
        assert until(lambda: in_flight(address)["jobs_waiting"] == 1)
        process.send_signal(signal.SIGTERM)
        second.join(20)
        assert first.is_alive(), "what runs goes on while the rest is refused"
        assert refused["response"].status_code == 503
        assert refused["response"].json()["error"]["code"] == "shutting_down"
        assert until(lambda: not connects(address), 10)
        first.join(120)
        assert process.wait(30) in (0, -signal.SIGTERM)
    expected = tiny_pipe().generate("a red circle", size=(128, 128), **long)
    assert same(opened(drawn["image"]), expected)
    assert "Traceback" not in log.read_text()


def test_no_key_and_no_prompt_in_any_log(folder, tmp_path):
    with running(folder, tmp_path) as (process, address, log):
        client = client_of(address)
        client.images.generate(prompt=SECRET, extra_body=FAST["bagel"])
        client.images.edit(image=("a.png", png(picture()), "image/png"), prompt=SECRET, extra_body=FAST["bagel"])
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": SECRET}], max_tokens=2)
        for path in (f"models?key={KEY}", f"{KEY}", f"images/generations?api_key={KEY}", f"models/{KEY}"):
            httpx2.get(f"{address}/v1/{path}", headers={"Authorization": f"Bearer {KEY}"})
            httpx2.post(f"{address}/v1/{path}", content=KEY.encode(), headers={"Authorization": KEY, "X-Key": KEY})
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as connection:
            connection.sendall(f"{KEY} {KEY}\r\n\r\n".encode())
            connection.recv(1000)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        text = log.read_text()
    assert "POST /v1/images/edits 200" in text and text.count("\n") > 8
    assert KEY not in text and "another-key" not in text and SECRET not in text and "secret" not in text


@pytest.mark.parametrize(
    ("settings", "words", "code"),
    [
        ({"limits": {"max_requests": 0}}, "The limit max_requests cannot be used", 1),
        ({"limits": {"requests": 1}}, "There is no limit requests", 1),
        ({"limits": 5}, "limits takes", 2),
        ({"batch_size": "x"}, "batch_size takes int", 2),
        ({"hots": "x"}, "did you mean host", 2),
        ({}, "model", 2),
    ],
)
def test_files_that_make_no_sense(tmp_path, capsys, settings, words, code):
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump({"port": 0, "model": str(tmp_path)} | settings if settings else {"port": 0}))
    try:
        found = main(["serve", "--config", str(config)])
    except SystemExit as error:
        found = error.code
    assert found == code and words in capsys.readouterr().err


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--model", str(tmp_path), "--port", str(taken.getsockname()[1])]) == 1
    assert "Nothing can listen at 127.0.0.1, port" in capsys.readouterr().err


# ---- uniedit synthesize


def test_synthesis_draws_and_asks_through_the_server(tmp_path, monkeypatch):
    """Rules write instructions for easy-VQA's images; the server draws the edits and grades them in JSON."""
    pytest.importorskip("easy_vqa", reason="the questions come with the extra quickstart")
    folder, out = tmp_path / "model", tmp_path / "out"
    spelling_pipe().save_pretrained(folder)
    monkeypatch.setenv("UNIEDIT_TEST_KEY", KEY)
    drawing = {"size": "auto", "extra_body": {"seed": 5, "num_timesteps": 3}}
    writing = {"temperature": 3.0, "seed": 1, "max_tokens": 2000}
    with running(folder, tmp_path) as (_, address, _):
        shared = {"model": "tiny", "base_url": f"{address}/v1", "api_key_env": "UNIEDIT_TEST_KEY"}
        settings = {
            "output_dir": str(out),
            "source": {"kind": "easy_vqa"},
            "decontaminate": {"near_duplicates": False},
            "classify": {"backend": "rules"},
            "balance": {"size": 4, "shares": {"shape": 1, "color": 1}},
            "instruct": {"backend": "rules", "unchanged": 0},
            "backends": {
                "painter": {"kind": "openai_images", "arguments": drawing, **shared},
                "grader": {"kind": "openai", "arguments": writing, **shared},
            },
            "edit": {"backend": "painter"},
            "verify": {"quality": "grader", "min_quality": 1, "min_unchanged": 0},
        }
        config = tmp_path / "synthesis.yaml"
        config.write_text(yaml.safe_dump(settings))
        assert main(["synthesize", "--config", str(config)]) == 0
        figures = httpx2.get(f"{address}/metrics").text
    rows = load_dataset(str(out / "dataset"), split="train")
    assert len(rows) == 4 and set(rows["editor"]) == set(rows["judge"]) == {"tiny"}
    assert all(each["quality"] in (1, 2, 3, 4, 5) for each in rows["scores"])
    assert all(row["target_image"].size == row["source_image"].size for row in rows)
    assert 'uniedit_requests_total{route="/v1/images/edits",status="200"}' in figures
    assert 'uniedit_requests_total{route="/v1/chat/completions",status="200"}' in figures


# ---- the files that are shipped


ROOT = Path(__file__).parents[1]


def test_the_example_of_settings_makes_sense():
    config = ROOT / "examples" / "serving" / "bagel.yaml"
    (settings,) = CommandParser("serve", "", run).parse(["--config", str(config)])
    assert settings.name == "bagel" and limits_from(settings.limits).max_requests == 32


def test_the_page_names_every_limit_with_its_default():
    page = (ROOT / "docs" / "serving.md").read_text()
    assert [name for name in Limits.model_fields if f"`{name}`" not in page] == []
    for name, value in (("batch_tokens", 131072), ("max_requests", 64), ("max_connections", 256)):
        assert f"| `{name}` | {value} |" in page and getattr(Limits(), name) == value


def test_the_container_copies_what_is_there_and_starts_the_server():
    text = (ROOT / "examples" / "serving" / "Containerfile").read_text()
    copied = [path for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for path in line.split()]
    assert copied and all((ROOT / path).exists() for path in copied)
    entry = json.loads(re.search(r"^ENTRYPOINT (.+)$", text, re.M)[1])
    assert entry[:2] == ["uniedit", "serve"]
    (settings,) = CommandParser("serve", "", run).parse([*entry[2:], "--model", "x"])
    assert (settings.host, settings.port) == ("0.0.0.0", 8000)


def test_the_code_of_the_page_runs(folder, tmp_path, monkeypatch):
    """The page's program, with a small model in place of its own and sizes that it draws."""
    page = (ROOT / "docs" / "serving.md").read_text()
    code = re.search(r"```python\n(.+?)```", page, re.S)[1]
    picture(64, 48).save(tmp_path / "shop.png")
    monkeypatch.chdir(tmp_path)
    with running(folder, tmp_path) as (_, address, _):
        for own, small in (
            ("http://127.0.0.1:8000", address),
            ("me/bagel-uniedit", "tiny"),
            ("1024x768", "64x48"),
            ('"num_timesteps": 50', '"num_timesteps": 3'),
        ):
            assert own in code
            code = code.replace(own, small)
        found: dict = {"KEY": KEY, "print": lambda *words, **options: told.append(words[0])}
        told: list[str] = []
        exec(code, found)  # the page's own
    assert found["drawn"].data[0].seed == 7 and "".join(told).strip()


# ---- loading


def test_what_the_file_says_about_loading(tmp_path):
    pipe = tiny_pipe()
    pipe.save_pretrained(tmp_path)
    pipe.model.save_pretrained(tmp_path / "ema")
    settings = ServerSettings(
        str(tmp_path), dtype="bfloat16", load={"subfolder": "ema"}, autoencoder={"dtype": "bfloat16", "tile": 64}
    )
    loaded = load_pipeline(settings)
    assert loaded.model.dtype == torch.bfloat16 and loaded.model.vae.dtype == torch.bfloat16
    for wrong, words in (({"tiel": 64}, "no option tiel"), ({"dtype": "int8"}, "'int8': choose from float32")):
        with pytest.raises(ValueError, match=words):
            load_pipeline(ServerSettings(str(tmp_path), autoencoder=wrong))
