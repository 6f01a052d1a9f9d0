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
        fault: `"401"`, `"html"`, `"500"`, `"bad_json"`, `"cut"`, `"late"`, `"silent"`, `"garbled"` or `"refused"`.
        share: Of the questions that it strikes, at every attempt.
        first_only: Whether it strikes the first attempt only.
        seconds: That every reply takes.
    """

    def __init__(self, fault: str = "", share: float = 1.0, first_only: bool = False, seconds: float = 0.0):
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


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

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
        message = {"role": "assistant", "content": reply}
        if fault == "refused":
            message = {"role": "assistant", "content": None, "refusal": "I would rather not."}
        content = {"model": f"{asked['model']}-dated", "choices": [{"message": message, "finish_reason": "stop"}]}
        data = json.dumps(content).encode()
        status = {"401": 401, "500": 500}.get(fault, 200)
        if fault == "401":
            data = json.dumps({"error": {"message": f"wrong key {self.headers.get('Authorization')}"}}).encode()
        data = {"html": b"<!doctype html><html>Sign in</html>", "bad_json": b'{"choices": ['}.get(fault, data)
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
        except (BrokenPipeError, ConnectionResetError):
            return
        if not fault:
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
    for name in ("consistency", "instruction", "quality"):
        if f'"{name}_score"' in text:
            return json.dumps({f"{name}_score": first + 3, "reasoning": "r"})
    return json.dumps({"score": [first + 5, second + 6], "reasoning": "r"})
