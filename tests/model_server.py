"""A small server for tests that answers for chat models, editors and judges over real HTTP, and fails in every way
that servers fail. It speaks OpenAI's chat completions and `images.edit`, Gemini's `generateContent`, and our own
`http_editor`.

What it answers, and whether the first attempt at it fails, depends on the request alone, so two runs get the same.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import select
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image, ImageDraw


FAULTS = ("busy", "broken", "silent", "cut")  # of a first attempt; the next one succeeds
IMAGE_FORMS = ("data url", "url", "line breaks", "without padding", "url-safe", "data url as url", "bare list")
OTHER_ANSWERS = ("malformed", "refused")  # of every attempt with the same body
THINGS = ("lamp", "kite", "clock", "vase", "boat", "chair", "tree", "kettle", "drum", "wheel", "crown", "ladder")
PLACES = ("upper left corner", "lower edge", "middle", "right border", "left border", "lower right corner")


@dataclass
class Behaviour:
    """How the server fails.

    Args:
        faults: Share of requests whose first attempt fails.
        others: Share of requests that are answered in another form, or refused.
        slow: Share of requests answered after `slow_seconds`.
        slow_seconds: How long a slow one takes.
        silence: Seconds that a silent one is kept waiting.
        always: A fault that strikes every request.
        status: With `always`, a status that every request gets.
        message: Of that status.
        code: Of that status.
        after: So many requests are answered well before `status` or `dress` strikes.
        dress: How the body of a chat reply is wrapped: "comment", "events", "surrogate", "surrogate in a reason", or,
            unreadable, "html".
        image_as: How an editor of OpenAI's form sends the image: one of `IMAGE_FORMS`, "mixed" for all of them in
            turn, "elsewhere" for an address of another host, "unknown" for a form that nobody knows.
        download: The status of downloads.
        prose: Whether chat models answer with a sentence instead of JSON, once `after` has passed.
        cut: Share of requests whose every reply is cut, once `after` has passed.
    """

    faults: float = 0.0
    others: float = 0.0
    slow: float = 0.0
    slow_seconds: float = 0.2
    silence: float = 30.0
    always: str | None = None
    status: int | None = None
    message: str = "no"
    code: str | None = None
    after: int = 0
    dress: str | None = None
    image_as: str | None = None
    download: int = 200
    cut: float = 0.0
    prose: bool = False


@dataclass
class ModelServer:
    """The server with what it saw. Use as a context manager."""

    behaviour: Behaviour = field(default_factory=Behaviour)

    def __post_init__(self):
        self.lock = threading.Lock()
        self.requests: list[dict] = []  # headers and body of every request
        self.answered: Counter[str] = Counter()  # complete replies by request
        self.tried: Counter[str] = Counter()
        self.struck: Counter[str] = Counter()
        self.in_flight = self.most_in_flight = 0
        self.keep_requests = False
        self.drawn: dict[str, bytes] = {}  # by the path of their address
        self.downloads: Counter[str] = Counter()

    def __enter__(self) -> ModelServer:
        self.server = QuietServer(("127.0.0.1", 0), Handler)
        self.server.owner = self
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def calls(self) -> int:
        return self.answered.total()

    @property
    def repeated(self) -> int:
        """Complete replies to requests that had been answered before."""
        return sum(number - 1 for number in self.answered.values())


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # of clients that were killed
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        owner: ModelServer = self.server.owner
        data, status = owner.drawn.get(self.path), owner.behaviour.download
        if data is None:
            self.send(404, {"error": {"message": "no such route"}})
            return
        with owner.lock:
            owner.downloads[self.path] += 1
            owner.requests.append({"path": self.path, "headers": dict(self.headers), "body": b""})
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if status == 200 else 0))
        self.end_headers()
        self.wfile.write(data if status == 200 else b"")

    def do_POST(self):
        owner: ModelServer = self.server.owner
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True  # the client was killed while it asked
            return
        boundary = boundary_of(self.headers.get("Content-Type", ""))
        if boundary:  # drawn by the client for every request
            body = body.replace(boundary.encode(), b"boundary")
        key = hashlib.sha256(self.path.encode() + body).hexdigest()
        with owner.lock:
            owner.tried[key] += 1
            attempt = owner.tried[key]
            owner.in_flight += 1
            owner.most_in_flight = max(owner.most_in_flight, owner.in_flight)
            if owner.keep_requests:
                owner.requests.append({"path": self.path, "headers": dict(self.headers), "body": body})
        try:
            self.respond(owner, key, attempt, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client was killed
        finally:
            with owner.lock:
                owner.in_flight -= 1

    def respond(self, owner: ModelServer, key: str, attempt: int, body: bytes) -> None:
        behaviour, draw = owner.behaviour, Draw(key)
        fault = draw.pick("fault", FAULTS) if draw.share("faults") < behaviour.faults and attempt == 1 else None
        fault = behaviour.always or fault
        other = draw.pick("other", OTHER_ANSWERS) if draw.share("others") < behaviour.others else None
        if draw.share("slow") < behaviour.slow:
            time.sleep(behaviour.slow_seconds)
        struck = owner.tried.total() > behaviour.after
        if behaviour.status is not None and struck:
            self.send(behaviour.status, {"error": {"message": behaviour.message, "code": behaviour.code}})
            return
        if fault:
            owner.struck[fault] += 1
        if fault == "busy":
            self.send(429, {"error": {"message": "too many requests"}}, {"Retry-After": "0.01"})
            return
        if fault == "broken":
            self.send(500, {"error": {"message": "internal error"}})
            return
        if fault == "silent":
            select.select([self.connection], [], [], behaviour.silence)  # until the client gives up
            self.close_connection = True
            return
        content = answer(self.path, self.headers.get("Content-Type", ""), body, draw, other)
        if other:
            owner.struck[other] += 1
        if behaviour.image_as and "data" in content and content["data"]:
            content = self.sent_as(owner, key, behaviour.image_as, content)
        if behaviour.prose and struck and "choices" in content:
            content["choices"][0]["message"]["content"] = "Sure, here is what you asked for."
        if behaviour.image_as == "data url" and "image" in content:
            content = content | {"image": f"data:image/png;base64,{content['image']}"}
        if struck and draw.share("cut") < behaviour.cut:
            fault = "cut"
            owner.struck["cut"] += 1
        if fault == "cut":
            self.send(200, content, cut=True)
            return
        dress = behaviour.dress if struck and "choices" in content else None
        self.send(200, content, dress=dress)
        if dress != "html":
            with owner.lock:
                owner.answered[key] += 1

    def sent_as(self, owner: ModelServer, key: str, form: str, content: dict) -> dict:
        """The reply of an image API with its image in another form."""
        text = content["data"][0]["b64_json"]
        if form == "mixed":
            form = Draw(key).pick("form", IMAGE_FORMS)
        if form in ("url", "elsewhere"):
            owner.drawn[f"/drawn/{key}"] = base64.b64decode(text)
            host = owner.address if form == "url" else owner.address.replace("127.0.0.1", "localhost")
            return content | {"data": [{"url": f"{host}/drawn/{key}", "b64_json": None}]}
        fields = {
            "data url": {"b64_json": f"data:image/png;base64,{text}"},
            "line breaks": {"b64_json": "\r\n".join(text[at : at + 76] for at in range(0, len(text), 76))},
            "without padding": {"b64_json": text.rstrip("=")},
            "url-safe": {"b64_json": text.replace("+", "-").replace("/", "_")},
            "data url as url": {"url": f"data:image/png;base64,{text}"},
            "bare list": {"image": text},
            "unknown": {"image_in_hex": base64.b64decode(text).hex()},
        }
        owner.struck[form] += 1
        return content | {"data": [fields[form]]}

    def send(
        self, status: int, content: dict, headers: dict | None = None, cut: bool = False, dress: str | None = None
    ) -> None:
        data = dressed(json.dumps(content), dress).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": len(data),
            **(headers or {}),
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.wfile.flush()
        if cut:
            self.close_connection = True


def dressed(body: str, dress: str | None) -> str:
    """The body of a chat completion as gateways send it."""
    if dress == "comment":
        return f": PROCESSING\n\n{body}"
    if dress == "html":
        return "<html>Just a moment ...</html>"
    if dress == "surrogate":
        return body.replace('"content": "', '"content": "\\ud83d', 1) if '"content": "' in body else body
    if dress == "surrogate in a reason":
        return body.replace('\\"reason\\": \\"', '\\"reason\\": \\"\\ud83d', 1)
    if dress == "events":
        made = json.loads(body)
        made["choices"] = [{"delta": choice["message"], "finish_reason": "stop"} for choice in made["choices"]]
        return f"data: {json.dumps(made)}\n\ndata: [DONE]\n\n"
    return body


class Draw:
    """Choices that depend on a request alone."""

    def __init__(self, key: str):
        self.key = key

    def number(self, purpose: str) -> int:
        return int(hashlib.sha256(f"{self.key} {purpose}".encode()).hexdigest()[:12], 16)

    def share(self, purpose: str) -> float:
        return self.number(purpose) / 16**12

    def pick(self, purpose: str, choices):
        return choices[self.number(purpose) % len(choices)]


# ---- what is answered


def answer(path: str, kind: str, body: bytes, draw: Draw, other: str | None) -> dict:
    if path.endswith("/images/edits"):
        return edited_by_openai(body, draw, other)
    asked = json.loads(body)
    if path.endswith("/edit"):
        return edited_by_http(asked, draw, other)
    if ":generateContent" in path:
        return generated(asked, draw, other)
    form = asked["response_format"]["json_schema"]["name"]
    text = next(part["text"] for part in asked["messages"][-1]["content"] if part["type"] == "text")
    message = {"role": "assistant", "content": structured(form, text, draw), "refusal": None}
    if other == "malformed":
        message["content"] = message["content"][: len(message["content"]) // 2]
    elif other == "refused":
        message = {"role": "assistant", "content": None, "refusal": "I would rather not."}
    return {
        "id": "chat",
        "object": "chat.completion",
        "created": 0,
        "model": asked["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }


def structured(form: str, text: str, draw: Draw) -> str:
    """A plausible answer in the form asked for."""
    if form == "Classification":
        asked = json.loads(text)
        return json.dumps({"category": category_of(asked, draw), "short_answer": asked["answer"]})
    if form == "Writing":
        return json.dumps(writing(json.loads(text), draw))
    if form == "Judgement":
        right = {name: draw.share(name) < 0.97 for name in ("premise", "change", "rest")}
        return json.dumps({"reason": "Seen.", **right})
    return json.dumps({"reason": "Seen.", "quality": draw.pick("quality", (2, 3, 4, 5, 5, 4))})


def category_of(asked: dict, draw: Draw) -> str:
    if asked["answer"] in ("yes", "no"):
        return draw.pick("category", ("yes_no", "knowledge", "location", "caption"))
    return "shape" if asked["answer"] in ("circle", "rectangle", "triangle") else "color"


def writing(asked: dict, draw: Draw) -> dict:
    plan = asked["plan"]
    thing, other, place = (draw.pick(name, choices) for name, choices in
                           (("thing", THINGS), ("other", THINGS), ("place", PLACES)))  # fmt: skip
    conditions = [
        {"condition": f"condition {index}", "holds": plan["holds"] if index == 0 else True}
        for index in range(plan["depth"])
    ]
    number = draw.number("mark") % 100_000 + 100
    said = f"Find out what the picture hides in its {place}, mark {number}"
    text = f"sign {number}" if "medium" in plan else ""
    return {
        "conditions": conditions,
        "instruction": f"{said}; if it fits, add the {thing} that belongs there, otherwise put up a {other}.",
        "expected": f"A {thing} in the {place}.",
        "text": text,
    }


def edited_by_openai(body: bytes, draw: Draw, other: str | None) -> dict:
    source = body[body.index(b"\x89PNG") :]
    result = edited(source, draw)
    if other == "refused":
        return {"created": 0, "data": []}
    data = base64.b64encode(result).decode()
    return {"created": 0, "data": [{"b64_json": data[:-7] + "*" if other == "malformed" else data}]}


def edited_by_http(asked: dict, draw: Draw, other: str | None) -> dict:
    if other == "refused":
        return {"refusal": "not this one"}
    data = edited(base64.b64decode(asked["image"]), draw)
    return {"image": base64.b64encode(data[:20] if other == "malformed" else data).decode()}


def generated(asked: dict, draw: Draw, other: str | None) -> dict:
    parts = asked["contents"][0]["parts"]
    usage = {"promptTokenCount": 50, "candidatesTokenCount": 10}
    if other == "refused":
        return {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": usage}
    schema = asked["generationConfig"].get("responseJsonSchema")
    if schema:
        text = structured(schema["title"], next(part["text"] for part in parts if "text" in part), draw)
        made = {"text": text[:5] if other == "malformed" else text}
    else:
        source = next(part["inlineData"]["data"] for part in parts if "inlineData" in part)
        data = edited(base64.urlsafe_b64decode(source), draw)
        made = {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(data).decode()}}
    return {
        "candidates": [{"content": {"role": "model", "parts": [made]}, "finishReason": "STOP"}],
        "usageMetadata": usage,
        "modelVersion": "gemini-test-1",
    }


def edited(source: bytes, draw: Draw) -> bytes:
    """The image with a bar drawn in; now and then in other proportions, or not changed at all."""
    image = Image.open(io.BytesIO(source)).convert("RGB")
    case = draw.share("edit")
    if case >= 0.03:
        left, top = (draw.number(side) % (size // 2) for side, size in zip("xy", image.size))
        color = tuple(draw.number(channel) % 256 for channel in "rgb")
        right, bottom = left + image.width // 3, top + image.height // 3
        ImageDraw.Draw(image).rectangle((left, top, right, bottom), fill=color)
    if case > 0.97:
        image = image.resize((image.width * 2, image.height))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def boundary_of(kind: str) -> str | None:
    found = re.search(r'boundary="?([^";]+)', kind)
    return found and found[1]
