"""A judge for tests over real HTTP, in OpenAI's chat format. Its marks depend on the question alone."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class JudgeServer:
    """Use as a context manager.

    Args:
        fault: A status in `ERRORS`; `"html"`, `"bad_json"`, `"cut"`, `"late"`, `"silent"`, `"garbled"`, `"refused"`,
            `"empty"`, or a dress of a good reply in `DRESSES`.
        share: Of the questions that it strikes, at every attempt.
        first_only: Whether it strikes the first attempt only.
        seconds: That every reply takes.
        posts_only: Whether it does not list its models.
    """

    def __init__(
        self, fault: str = "", share: float = 1.0, first_only: bool = False, seconds: float = 0.0, posts_only=False
    ):
        self.posts_only, self.looked = posts_only, 0
        self.fault, self.share, self.first_only, self.seconds = fault, share, first_only, seconds
        self.lock, self.tried, self.answered, self.keys = threading.Lock(), Counter(), Counter(), set()

    def __enter__(self) -> JudgeServer:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.owner = self
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}/v1"
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


ERRORS = {
    "401": (401, {"message": "wrong key KEY"}),
    "402": (402, {"message": "no credit"}),
    "429": (429, {"message": "too many requests"}),
    "quota": (429, {"message": "You exceeded your current quota", "code": "insufficient_quota"}),
    "billing": (400, {"message": "hard limit", "code": "billing_hard_limit_reached"}),
    "parameter": (400, {"message": "'max_tokens' is not supported with this model", "code": "unsupported_parameter"}),
    "moderated": (400, {"message": "flagged", "code": "content_policy_violation"}),
    "500": (500, {"message": "oops"}),
}
DRESSES = {
    "comment": lambda data: b": processing\n\n" + data,
    "events": lambda data: b"".join(
        b"data: " + json.dumps({"choices": [{"delta": {"content": part}, "finish_reason": None}]}).encode() + b"\n\n"
        for part in halves(json.loads(data)["choices"][0]["message"]["content"])
    ) + b"data: [DONE]\n\n",
    "surrogate": lambda data: data.replace(b'"content": "', b'"content": "\\ud83d '),
    "parts": lambda data: json.dumps(
        {"choices": [{"message": {"content": [{"type": "text", "text": part} for part in halves(
            json.loads(data)["choices"][0]["message"]["content"])]}}]}
    ).encode(),
}  # fmt: skip


def halves(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        """The list of models, for those who look whether their key is taken."""
        owner: JudgeServer = self.server.owner
        with owner.lock:
            owner.looked += 1
            owner.keys.add(self.headers.get("Authorization"))
        status = 501 if owner.posts_only else 401 if owner.fault == "401" else 200
        data = json.dumps({"data": [{"id": "judge"}]}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self):
        owner: JudgeServer = self.server.owner
        body = self.rfile.read(int(self.headers["Content-Length"]))
        number = int(hashlib.sha256(body).hexdigest()[:8], 16)
        with owner.lock:
            owner.tried[number] += 1
            owner.keys.add(self.headers.get("Authorization"))
            struck = number / 16**8 < owner.share and not (owner.first_only and owner.tried[number] > 1)
        fault = owner.fault if struck else ""
        time.sleep(owner.seconds + (0.3 if fault == "late" else 30 if fault == "silent" else 0))
        asked = json.loads(body)
        text = asked["messages"][0]["content"][0]["text"]
        reply = "I would say it is good." if fault == "garbled" else marks(text, number)
        message = {"role": "assistant", "content": "" if fault == "empty" else reply}
        if fault == "refused":
            message = {"role": "assistant", "content": None, "refusal": "I would rather not."}
        content = {"model": f"{asked['model']}-dated", "choices": [{"message": message, "finish_reason": "stop"}]}
        data = json.dumps(content).encode()
        status, error = ERRORS.get(fault, (200, None))
        if error:
            key = str(self.headers.get("Authorization"))
            data = json.dumps({"error": error}).replace("KEY", key).encode()
        data = {"html": b"<!doctype html><html>Sign in</html>", "bad_json": b'{"choices": ['}.get(fault, data)
        data = DRESSES.get(fault, bytes)(data)
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
        except (BrokenPipeError, ConnectionResetError):
            return
        if not fault or fault in DRESSES:
            with owner.lock:
                owner.answered[number] += 1


def marks(text: str, number: int) -> str:
    """A reply in the form that the question asks for."""
    first, second = number % 3, number // 3 % 3
    if "**Consistency**" in text:
        return f"**Consistency**: {first}\n**Realism**: {second}\n**Aesthetic Quality**: 1"
    if "Preservation" in text:
        return f"Fine.\nInstruction: {first + 3}\nQuality: {second + 2}\nPreservation: {second + 1}"
    if "Final Score: N, N" in text:
        return f"Looks fine.\nFinal Score: {first % 2}, {second % 2}"
    if "Final Score" in text:
        return f"Looks fine.\nFinal Score: {first + 3}"
    if '"knowledge_score"' in text:
        return json.dumps({"instruction_score": first + 3, "knowledge_score": second + 3, "reasoning": "r"})
    if '"score": N}' in text:
        return json.dumps({"reason": "r", "score": first + 5})
    for name in ("consistency", "instruction", "quality"):
        if f'"{name}_score"' in text:
            return json.dumps({f"{name}_score": first + 3, "reasoning": "r"})
    return json.dumps({"score": [first + 5, second + 6], "reasoning": "r"})
