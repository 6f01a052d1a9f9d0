"""The server behind `hub.py`: as much of the Hub's HTTP interface, over `hub_state.py`, as huggingface_hub, datasets,
transformers and gradio use.

    python tests/hub_server.py --folder FOLDER        prints its address
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub import ORGANISATION, TOKEN, USER, Fault
from hub_state import Commit, HubError, HubState, Repository, StoredFile


LARGE_ENDINGS = (".parquet", ".arrow", ".safetensors", ".bin", ".pt", ".png", ".jpg", ".webp", ".tar", ".zip")
LARGE_SIZE = 10 * 2**20
STALL_SECONDS = 60


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass  # the log is in `HubState.requests`

    @property
    def state(self) -> HubState:
        return self.server.state

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self) -> None:
        """Every request comes here."""
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        self.entry = {"method": self.command, "path": url.path, "status": None, "received": 0, "sent": 0}
        if not url.path.startswith("/control/"):
            self.state.requests.append(self.entry)
        try:
            self.body = self.read_body(self.striking_fault(url.path))
            self.route(url.path)
        except HubError as error:
            headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
            self.send_json({"error": error.message}, error.status, headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client was killed

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def striking_fault(self, path: str) -> Fault | None:
        with self.state.lock:
            return next((fault for fault in self.state.faults if fault.strikes(self.command, path)), None)

    def read_body(self, fault: Fault | None) -> bytes:
        length = int(self.headers.get("Content-Length", 0))
        if fault is not None and fault.action == "stall":
            self.entry["received"] = len(self.rfile.read(length // 2))
            self.entry["status"] = "stalled"
            self.state.released.wait(STALL_SECONDS)
            raise BrokenPipeError
        body = self.read_chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        self.entry["received"] = len(body)
        if fault is not None:
            raise HubError(fault.status, message="injected fault")
        return body

    def read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def route(self, path: str) -> None:
        for method, pattern, act in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split():
                act(self, **{name: unquote(value or "") for name, value in match.groupdict().items()})
                return
        raise HubError(404, message=f"no route {self.command} {path}")

    def send(self, status: int, data: bytes, headers: dict[str, Any]) -> None:
        self.entry["status"] = status
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
            self.entry["sent"] = len(data)

    def send_json(self, content: Any, status: int = 200, headers: dict[str, Any] | None = None) -> None:
        self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def signed_in(self) -> bool:
        given = self.headers.get("Authorization", "")
        if given and given != f"Bearer {TOKEN}":
            raise HubError(401, message="Invalid credentials in Authorization header")
        return bool(given)

    def require_token(self) -> None:
        if not self.signed_in():
            raise HubError(401, message="Unauthorized")

    def repository(self, kind: str, name: str) -> Repository:
        found = self.state.repositories.get((kind, name))
        if found is None or (found.private and not self.signed_in()):
            raise HubError(404 if self.signed_in() else 401, "RepoNotFound", "Repository not found")
        return found


# ---------------------------------------------------------------------------------------------------------------------
# Users and repositories


def who_am_i(request: Handler) -> None:
    request.require_token()
    token = {"displayName": "test", "role": "write"}
    organisations = [{"name": ORGANISATION, "type": "org"}]
    request.send_json({"type": "user", "id": "1", "name": USER, "fullname": USER, "orgs": organisations}
                      | {"auth": {"type": "access_token", "accessToken": token}})  # fmt: skip


def create_repository(request: Handler) -> None:
    request.require_token()
    asked = request.json()
    kind = asked.get("type") or "model"
    name = f"{asked.get('organization') or USER}/{asked['name']}"
    answer = {"url": f"{request.address}/{'' if kind == 'model' else kind + 's/'}{name}", "name": name, "id": name}
    with request.state.lock:
        if (kind, name) in request.state.repositories:
            request.send_json({"error": "You already created this repo"} | answer, 409)
            return
        request.state.create(kind, name, bool(asked.get("private")) or asked.get("visibility") == "private")
    request.send_json(answer)


def delete_repository(request: Handler) -> None:
    request.require_token()
    asked = request.json()
    name = f"{asked.get('organization') or USER}/{asked['name']}"
    request.state.repositories.pop((asked.get("type") or "model", name), None)
    request.send_json({})


def validate_yaml(request: Handler) -> None:
    request.send_json({"errors": [], "warnings": []})


def repository_info(request: Handler, kind: str, name: str, revision: str = "") -> None:
    repository = request.repository(kind, name)
    commit = repository.commit(revision or "main")
    siblings = [{"rfilename": path, "size": file.size, "blobId": file.git_id} for path, file in commit.files.items()]
    info = {
        "_id": "0" * 24,
        "id": name,
        "modelId": name,
        "sha": commit.id,
        "author": name.split("/")[0],
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "lastModified": commit.date,
        "createdAt": commit.date,
        "siblings": siblings,
        "cardData": card_data(request.state, commit),
        "usedStorage": sum(file.size for file in commit.files.values()),
    }
    request.send_json(info)


def card_data(state: HubState, commit: Commit) -> dict | None:
    file = commit.files.get("README.md")
    text = (state.blobs / file.sha256).read_text(encoding="utf-8") if file else ""
    return yaml.safe_load(text.split("---")[1]) if text.startswith("---") else None


def list_references(request: Handler, kind: str, name: str) -> None:
    repository = request.repository(kind, name)
    listed = {
        part: [{"name": each, "ref": f"refs/{ref}/{each}", "targetCommit": commit} for each, commit in found.items()]
        for part, ref, found in (("branches", "heads", repository.branches), ("tags", "tags", repository.tags))
    }
    request.send_json({"converts": []} | listed)


def list_commits(request: Handler, kind: str, name: str, revision: str) -> None:
    repository = request.repository(kind, name)
    commit: Commit | None = repository.commit(revision or "main")
    listed = []
    while commit is not None:
        listed.append({"id": commit.id, "title": commit.title, "message": "", "date": commit.date, "authors": []})
        commit = repository.commits.get(commit.parent) if commit.parent else None
    request.send_json(listed)


def change_tag(request: Handler, kind: str, name: str, revision: str) -> None:
    request.require_token()
    repository = request.repository(kind, name)
    if request.command == "DELETE":
        repository.tags.pop(revision, None)
    else:
        tag = request.json()["tag"]
        if tag in repository.tags:
            raise HubError(409, message="Tag reference exists already")
        repository.tags[tag] = repository.commit(revision).id
    request.send_json({})


def change_branch(request: Handler, kind: str, name: str, branch: str) -> None:
    request.require_token()
    repository = request.repository(kind, name)
    if request.command == "DELETE":
        repository.branches.pop(branch, None)
    elif branch in repository.branches:
        raise HubError(409, message="Reference already exists")
    else:
        repository.branches[branch] = repository.commit(request.json().get("startingPoint") or "main").id
    request.send_json({})


def change_settings(request: Handler, kind: str, name: str) -> None:
    request.require_token()
    repository = request.repository(kind, name)
    repository.gated = request.json().get("gated", repository.gated)
    request.send_json(request.json())


def request_hardware(request: Handler, kind: str, name: str) -> None:
    request.require_token()
    hardware = request.repository(kind, name).hardware = request.json()["flavor"]
    request.send_json({"stage": "BUILDING", "hardware": {"current": None, "requested": hardware}, "gcTimeout": None})


# ---------------------------------------------------------------------------------------------------------------------
# Files


def file_entry(path: str, file: StoredFile) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": file.size, "oid": file.git_id}
    return entry | ({"lfs": {"oid": file.sha256, "size": file.size, "pointerSize": 134}} if file.large else {})


def folder_entry(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def list_tree(request: Handler, kind: str, name: str, revision: str, folder: str) -> None:
    files = request.repository(kind, name).commit(revision).files
    prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
    inside = {path: file for path, file in sorted(files.items()) if path.startswith(prefix)}
    if prefix and not inside:
        raise HubError(404, "EntryNotFound", f"{folder} does not exist")
    recursive = request.query.get("recursive", "").lower() in ("true", "1")
    entries: dict[str, dict] = {}
    for path, file in inside.items():
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if recursive else min(2, len(parts))):
            entries.setdefault(prefix + "/".join(parts[:depth]), folder_entry(prefix + "/".join(parts[:depth])))
        if recursive or len(parts) == 1:
            entries[path] = file_entry(path, file)
    start, limit = int(request.query.get("cursor", 0)), int(request.query.get("limit", 1000))
    headers = {}
    if start + limit < len(entries):
        query = f"recursive={str(recursive).lower()}&limit={limit}&cursor={start + limit}"
        headers["Link"] = f'<{request.address}{urlsplit(request.path).path}?{query}>; rel="next"'
    request.send_json(list(entries.values())[start : start + limit], headers=headers)


def paths_info(request: Handler, kind: str, name: str, revision: str) -> None:
    files = request.repository(kind, name).commit(revision).files
    is_json = "json" in request.headers.get("Content-Type", "")
    asked = request.json()["paths"] if is_json else parse_qs(request.body.decode()).get("paths", [])
    found = []
    for path in [asked] if isinstance(asked, str) else asked:
        path = path.strip("/")
        if path in files:
            found.append(file_entry(path, files[path]))
        elif any(each.startswith(f"{path}/") for each in files):
            found.append(folder_entry(path))
    request.send_json(found)


def download(request: Handler, kind: str, name: str, revision: str, path: str) -> None:
    repository = request.repository(kind, name)
    if repository.gated and not request.signed_in():
        raise HubError(401, "GatedRepo", "Access to this repo is restricted")
    commit = repository.commit(revision)
    if path not in commit.files:
        headers = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": commit.id}
        request.send_json({"error": "Entry not found"}, 404, headers)
        return
    file = commit.files[path]
    headers = {"X-Repo-Commit": commit.id, "ETag": f'"{file.tag}"', "Accept-Ranges": "bytes"}
    if file.large:
        headers |= {"X-Linked-Etag": f'"{file.tag}"', "X-Linked-Size": file.size}
    start, end = 0, file.size
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if wanted and file.size:
        first, last = wanted.groups()
        start = int(first) if first else max(0, file.size - int(last))
        end = min(int(last) + 1, file.size) if first and last else file.size
        if start >= file.size:
            raise HubError(416, message="Range not satisfiable")
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
    if request.command == "HEAD":
        request.send(200, b"", headers | {"Content-Length": file.size})
        return
    with open(request.state.blobs / file.sha256, "rb") as blob:
        blob.seek(start)
        request.send(206 if "Content-Range" in headers else 200, blob.read(end - start), headers)


def preupload(request: Handler, kind: str, name: str, revision: str) -> None:
    request.require_token()
    files = request.repository(kind, name).commit(revision).files
    answers = []
    for asked in request.json()["files"]:
        path = asked["path"]
        large = path.lower().endswith(LARGE_ENDINGS) or asked["size"] > LARGE_SIZE
        answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        answers.append(answer | ({"oid": files[path].tag} if path in files else {}))
    request.send_json({"files": answers})


def lfs_batch(request: Handler, kind: str, name: str) -> None:
    request.require_token()
    request.repository(kind, name)
    objects = []
    for asked in request.json()["objects"]:
        answer = {"oid": asked["oid"], "size": asked["size"]}
        if not (request.state.blobs / asked["oid"]).exists():
            place = f"{request.address}/lfs/{asked['oid']}"
            answer["actions"] = {"upload": {"href": place}, "verify": {"href": f"{place}/verify"}}
        objects.append(answer)
    request.send_json({"transfer": "basic", "objects": objects})


def lfs_upload(request: Handler, digest: str) -> None:
    if hashlib.sha256(request.body).hexdigest() != digest:
        raise HubError(400, message="the contents are not those that were announced")
    request.state.store(request.body, True)
    request.send(200, b"", {"ETag": f'"{digest}"'})


def lfs_verify(request: Handler, digest: str) -> None:
    request.send_json({}, 200 if (request.state.blobs / digest).exists() else 404)


def commit_files(request: Handler, kind: str, name: str, revision: str) -> None:
    request.require_token()
    repository = request.repository(kind, name)
    with request.state.lock:
        head = repository.commit(revision)
        files, title = dict(head.files), "commit"
        for line in request.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                title = value.get("summary", title)
                if value.get("parentCommit") not in (None, head.id):
                    raise HubError(412, message="A commit has happened since. Please refresh and try again.")
            elif operation["key"] == "file":
                files[value["path"]] = request.state.store(base64.b64decode(value["content"]), False)
            elif operation["key"] == "lfsFile":
                blob = request.state.blobs / value["oid"]
                if not blob.exists():
                    raise HubError(400, message=f"There is no uploaded object {value['oid']}")
                pointer = hashlib.sha1(value["oid"].encode()).hexdigest()
                files[value["path"]] = StoredFile(value["oid"], blob.stat().st_size, True, pointer)
            elif operation["key"] == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise HubError(404, "EntryNotFound", "A file with this name doesn't exist")
            elif operation["key"] == "deletedFolder":
                folder = value["path"].rstrip("/") + "/"
                files = {path: file for path, file in files.items() if not path.startswith(folder)}
        commit = repository.add_commit(revision, files, title)
    place = "" if kind == "model" else f"{kind}s/"
    request.send_json({"success": True, "commitOid": commit.id, "hookOutput": ""}
                      | {"commitUrl": f"{request.address}/{place}{name}/commit/{commit.id}"})  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# What tests ask


def show_log(request: Handler) -> None:
    request.send_json(request.state.requests)


def change_faults(request: Handler) -> None:
    with request.state.lock:
        if request.command == "DELETE":
            request.state.faults.clear()
            request.state.requests.clear()
            request.state.released.set()
        else:
            request.state.released.clear()
            request.state.faults.append(Fault(**request.json()))
    request.send_json({})


KIND = r"(?P<kind>models|datasets|spaces)"
NAME = r"(?P<name>[^/]+/[^/]+|[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
API = f"/api/{KIND}/{NAME}"
FILE_NAME = r"(?:(?P<kind>datasets|spaces)/)?(?P<name>(?:[^/]+/)?[^/]+)"


def of_kind(act: Callable) -> Callable:
    """The function with `datasets` made `dataset`, and no kind `model`."""
    return lambda request, kind, **rest: act(request, kind=kind.removesuffix("s") or "model", **rest)


ROUTES: list[tuple[str, str, Callable]] = [
    ("GET", "/control/log", show_log),
    ("POST DELETE", "/control/faults", change_faults),
    ("GET", "/api/whoami-v2", who_am_i),
    ("POST", "/api/repos/create", create_repository),
    ("DELETE", "/api/repos/delete", delete_repository),
    ("POST", "/api/validate-yaml", validate_yaml),
    ("PUT", r"/lfs/(?P<digest>[0-9a-f]{64})", lfs_upload),
    ("POST", r"/lfs/(?P<digest>[0-9a-f]{64})/verify", lfs_verify),
    ("POST", rf"/{FILE_NAME}\.git/info/lfs/objects/batch", of_kind(lfs_batch)),
    ("GET HEAD", rf"/{FILE_NAME}/(?:resolve|raw)/{REVISION}/(?P<path>.+)", of_kind(download)),
    ("GET", rf"{API}/refs", of_kind(list_references)),
    ("GET", rf"{API}/commits/{REVISION}", of_kind(list_commits)),
    ("GET", rf"{API}/tree/{REVISION}(?:/(?P<folder>.+))?", of_kind(list_tree)),
    ("POST", rf"{API}/paths-info/{REVISION}", of_kind(paths_info)),
    ("POST", rf"{API}/preupload/{REVISION}", of_kind(preupload)),
    ("POST", rf"{API}/commit/{REVISION}", of_kind(commit_files)),
    ("POST DELETE", rf"{API}/tag/{REVISION}", of_kind(change_tag)),
    ("POST DELETE", rf"{API}/branch/(?P<branch>[^/]+)", of_kind(change_branch)),
    ("PUT", rf"{API}/settings", of_kind(change_settings)),
    ("POST", rf"{API}/hardware", of_kind(request_hardware)),
    ("GET", rf"{API}/revision/{REVISION}", of_kind(repository_info)),
    ("GET", API, of_kind(repository_info)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    server.daemon_threads = True
    server.state = HubState(options.folder)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)  # noqa: T201
    server.serve_forever()


if __name__ == "__main__":
    main()
