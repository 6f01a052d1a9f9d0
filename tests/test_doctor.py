"""`uniedit doctor` tells what is there and what is missing, and never a key."""

from __future__ import annotations

import getpass
import http.server
import os
import subprocess
import sys
import threading
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from uniedit_hf import cli
from uniedit_hf.cli import doctor


def lines(capsys, *flags: str) -> dict[str, str]:
    assert cli.main(["doctor", *flags]) == 0
    facts = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert len(facts) <= 40, "one screen"
    return {line[:16].strip(): line[16:] for line in facts}


def test_versions_devices_and_disk(capsys):
    found = lines(capsys)
    assert f"torch {torch.__version__}" in found["packages"] and "missing" not in found["packages"]
    assert "cores" in found["processor"] and "GB available" in found["memory"] and "GB free" in found["disk"]
    assert found["hub"].startswith("HF_HUB_OFFLINE is set")


@pytest.mark.parametrize("missing", [set(), {"gradio"}, {"openai", "httpx2"}])
def test_extras(capsys, monkeypatch, missing):
    def version(name):
        if name in missing:
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor, "version", version)
    found = lines(capsys)
    assert ("gradio" in found["[demo]"]) == ("gradio" in missing)
    for name in missing - {"gradio"}:
        assert name in found["[synthesis]"] and 'pip install "uniedit_hf[synthesis]"' in found["[synthesis]"]
    assert missing or all(value == "installed" for name, value in found.items() if name.startswith("["))


def test_without_any_extra(capsys, monkeypatch):
    """Every extra that needs a package says how to install it, and the screen still fits."""

    def version(name):
        if name in doctor.PACKAGES:
            return "1.0"
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", version)
    found = {name: value for name, value in lines(capsys).items() if name.startswith("[")}
    assert len(found) > 10
    for name, value in found.items():
        assert value.startswith("missing ") and value.endswith(f'pip install "uniedit_hf{name}"'), value


def test_it_goes_into_the_issue_template(capsys):
    """The template has a code block for it that nothing in the output can end, and no line is the user's name."""
    template = (Path(__file__).parents[1] / ".github" / "ISSUE_TEMPLATE" / "bug.md").read_text(encoding="utf-8")
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    before, _, after = template.partition("**`uniedit doctor`**")
    assert after.count("```") == 2 and "`uniedit doctor --model NAME`" in after
    filled = before + after.replace("```\n```", f"```\n{said}```")
    assert filled.count("```") == template.count("```") and said in filled
    assert getpass.getuser() not in said.split() and str(Path.home()) not in said


def test_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (70 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number=0: "NVIDIA H100")
    assert lines(capsys)["GPU 0"].startswith("NVIDIA H100, 80.0 GB, 70.0 GB free")


def test_the_hub_answers_or_not_and_no_key_is_shown(tmp_path):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for port, words in ((server.server_port, "answers; logged in"), (9, "cannot be reached")):
            env = dict(os.environ) | {"HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_secretsecret", "HF_HOME": str(tmp_path)}
            env["HF_ENDPOINT"] = f"http://127.0.0.1:{port}"
            done = subprocess.run(
                [sys.executable, "-m", "uniedit_hf.cli", "doctor"], env=env, capture_output=True, text=True
            )
            assert done.returncode == 0 and words in done.stdout.splitlines()[-1]
            assert "hf_secretsecret" not in done.stdout + done.stderr
        server.shutdown()


def test_a_model_is_planned(capsys, tmp_path):
    assert cli.main(["doctor", "--model", "assets/small_bagel"]) == 0
    out = capsys.readouterr().out
    assert "lora" in out and "full-8bit" in out
    assert cli.main(["doctor", "--model", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
