"""A small Hub on loopback, by the protocol that the real client speaks: enough to push and pull.

Repositories with branches, tags and commits; cards are checked by the rules that the real one has;
large files go through LFS; files are served with ranges, and connections break where asked.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

from adapters_hub.library.hub_fields import _LICENSES

WRITE, READ, OTHER = "hf_write", "hf_read", "hf_other"
ISO = re.compile(r"[a-z]{2,3}")
LARGE = 20_000


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    commits: dict = field(default_factory=dict)  # id → {path: bytes}
    branches: dict = field(default_factory=lambda: {"main": None})
    tags: dict = field(default_factory=dict)
    messages: list = field(default_factory=list)

    def commit(self, branch, changes, message=""):
        files = {**self.commits.get(self.branches.get(branch), {}), **changes}
        text = repr((branch, len(self.commits), sorted(files)))
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        self.messages.append(message)
        return commit

    def resolve(self, revision):
        if revision in self.branches:
            return self.branches[revision]
        if revision in self.tags:
            return self.tags[revision]
        return next(
            (c for c in self.commits if len(revision) >= 7 and c.startswith(revision)), None
        )


class FakeHub:
    """What the server knows; tests look into it and break it."""

    def __init__(self):
        self.repositories = {}
        self.objects = {}  # LFS: sha256 → bytes
        self.requests = []  # (method, path, Range)
        self.break_after = None  # bytes of a file, once
        self.refuse_commit = 0  # so many answers of 500
        self.url = ""

    def uploads(self):
        return [path for method, path, _ in self.requests if method == "PUT"]

    def ranges(self):
        return [span for method, path, span in self.requests if method == "GET" and span]

    def make(self, name, files, branch="main", **facts):
        repository = self.repositories.setdefault(name, Repository(**facts))
        return repository.commit(branch, files)


def problems_of(card):
    """What the Hub says against a card's fields."""
    front = yaml.safe_load(card.split("---")[1])
    found = []
    languages = front.get("language") or []
    for tag in [languages] if isinstance(languages, str) else languages:
        if not isinstance(tag, str) or not ISO.fullmatch(tag):
            found.append(
                f'"language" with value "{tag}" is not valid. It must be an ISO 639-1 code'
            )
    if front.get("license") and front["license"] not in _LICENSES.split():
        found.append('"license" must be one of its list')
    if "base_model" in front and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", front["base_model"]):
        found.append('"base_model" is not valid. Use a model id from https://hf.co/models')
    for model in front.get("model-index", []):
        for result in model["results"]:
            if not (result["task"]["type"] and result["dataset"]["type"] and result["metrics"]):
                found.append("model-index")
    return found


class Answering(BaseHTTPRequestHandler):
    """Silent, and answers with a length."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *given):
        pass

    def answer(self, status, data=None, body=b"", **headers):
        if data is not None:
            body = json.dumps(data).encode()
            headers.setdefault("Content-Type", "application/json")
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Handler(Answering):
    # ── answers ──────────────────────────────────────────────────────────────────────────────

    def refuse(self, status, code, message):
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def token(self):
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def body(self):
        length = self.headers.get("Content-Length")
        if length is not None:
            return self.rfile.read(int(length))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def repository(self, name, writing=False):
        """The repository if the token may, else None, and the answer is given."""
        repository, token = self.server.hub.repositories.get(name), self.token()
        if token not in (None, WRITE, READ, OTHER):
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        hidden = repository is None or (repository.private and token not in (WRITE, READ))
        if hidden and token is None:
            return self.refuse(401, "RepoNotFound", "Repository not found")
        if hidden:
            return self.refuse(404, "RepoNotFound", "Repository not found")
        if repository.gated and token != WRITE:
            return self.refuse(403 if token else 401, "GatedRepo", "Access to it is restricted")
        if writing and token is None:
            return self.refuse(401, "", "Invalid username or password.")
        if writing and token != WRITE:
            return self.refuse(403, "", "you need a token that may write")
        return repository

    # ── requests ─────────────────────────────────────────────────────────────────────────────

    def handle_any(self):
        path = unquote(urlsplit(self.path).path)
        self.server.hub.requests.append((self.command, path, self.headers.get("Range")))
        body = self.body() if self.command in ("POST", "PUT") else b""
        for pattern, method, name in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method:
                return getattr(self, name)(*found.groups(), body)
        return self.refuse(404, "", f"no {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def create(self, body):
        asked, token = json.loads(body), self.token()
        if token is None:
            return self.refuse(401, "", "Invalid username or password.")
        if token != WRITE:
            return self.refuse(403, "", "you need a token that may write")
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.hub.repositories:
            url = f"{self.server.hub.url}/{name}"
            return self.answer(409, {"error": "You already created it", "url": url})
        private = asked.get("visibility") == "private"
        self.server.hub.repositories[name] = Repository(private)
        self.server.hub.repositories[name].commit("main", {".gitattributes": b""})
        return self.answer(200, {"url": f"{self.server.hub.url}/{name}"})

    def validate(self, body):
        found = [{"message": text} for text in problems_of(json.loads(body)["content"])]
        return self.answer(400 if found else 200, {"errors": found, "warnings": []})

    def branch(self, name, branch, body):
        if (repository := self.repository(name, writing=True)) is None:
            return None
        if branch in repository.branches:
            return self.refuse(409, "", "Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        return self.answer(200, {})

    def preupload(self, name, revision, body):
        if self.repository(name, writing=True) is None:
            return None
        files = [
            {"path": file["path"], "shouldIgnore": False,
             "uploadMode": "lfs" if file["size"] > LARGE else "regular"}
            for file in json.loads(body)["files"]
        ]  # fmt: skip
        return self.answer(200, {"files": files})

    def batch(self, name, body):
        if self.repository(name, writing=True) is None:
            return None
        hub = self.server.hub
        objects = [
            {"oid": file["oid"], "size": file["size"]}
            | ({} if file["oid"] in hub.objects else
               {"actions": {"upload": {"href": f"{hub.url}/lfs/{file['oid']}"}}})
            for file in json.loads(body)["objects"]
        ]  # fmt: skip
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid, body):
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.hub.objects[oid] = body
        return self.answer(200, {})

    def commit(self, name, revision, body):
        if (repository := self.repository(name, writing=True)) is None:
            return None
        hub = self.server.hub
        if hub.refuse_commit:
            hub.refuse_commit -= 1
            return self.refuse(500, "", "try later")
        if revision not in repository.branches:
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        changes, message = {}, ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                changes[value["path"]] = hub.objects[value["oid"]]
        commit = repository.commit(revision, changes, message)
        url = f"{hub.url}/{name}/commit/{commit}"
        return self.answer(200, {"commitUrl": url, "commitOid": commit, "success": True})

    def model(self, name, revision, body):
        if (repository := self.repository(name)) is None:
            return None
        commit = repository.resolve(revision or "main")
        if commit is None:
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        siblings = [{"rfilename": path} for path in sorted(repository.commits[commit])]
        return self.answer(200, {
            "_id": "0", "id": name, "modelId": name, "sha": commit, "private": repository.private,
            "siblings": siblings, "tags": [], "downloads": 0, "likes": 0,
        })  # fmt: skip

    def refs(self, name, body):
        if (repository := self.repository(name)) is None:
            return None
        shown = {
            kind: [
                {"name": k, "ref": f"refs/{kind}/{k}", "targetCommit": v} for k, v in known.items()
            ]
            for kind, known in (("branches", repository.branches), ("tags", repository.tags))
        }
        return self.answer(200, {**shown, "converts": []})

    def resolve(self, name, revision, path, body):
        if (repository := self.repository(name)) is None:
            return None
        commit = repository.resolve(revision)
        if commit is None:
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        data = repository.commits[commit].get(path)
        if data is None:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        return send_file(self, data, self.server.hub, X_Repo_Commit=commit)


def send_file(handler, data, state, **headers):
    """Bytes as a file, or the part of it that is asked for; breaks off once where it should."""
    total, span = len(data), re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range") or "")
    status = 200
    if span:
        start, end = int(span[1]), min(int(span[2] or total - 1), total - 1)
        data, status = data[start : end + 1], 206
        headers["Content_Range"] = f"bytes {start}-{end}/{total}"
    headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
    headers["Accept_Ranges"] = "bytes"
    cut = state.break_after
    if handler.command == "GET" and cut is not None and len(data) > cut:
        state.break_after = None
        handler.send_response(status)
        for key, value in {**headers, "Content_Length": str(len(data))}.items():
            handler.send_header(key.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data[:cut])
        handler.wfile.flush()
        handler.close_connection = True
        return handler.connection.shutdown(2)
    return handler.answer(status, body=data, **headers)


_NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (r"/api/repos/create", "POST", "create"),
    (r"/api/validate-yaml", "POST", "validate"),
    (rf"/api/models/{_NAME}/branch/(.+)", "POST", "branch"),
    (rf"/api/models/{_NAME}/preupload/(.+)", "POST", "preupload"),
    (rf"/{_NAME}\.git/info/lfs/objects/batch", "POST", "batch"),
    (r"/lfs/(\w+)", "PUT", "upload"),
    (rf"/api/models/{_NAME}/commit/(.+)", "POST", "commit"),
    (rf"/api/models/{_NAME}/refs", "GET", "refs"),
    (rf"/api/models/{_NAME}(?:/revision/(.+))?", "GET", "model"),
    (rf"/{_NAME}/resolve/([^/]+)/(.+)", ("GET", "HEAD"), "resolve"),
]


@contextmanager
def serving(handler, state):
    """A server in a thread; ``state.url`` is where it is."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.hub = state
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def running_hub(monkeypatch, folder, token=WRITE):
    """A fake Hub that huggingface_hub talks to, with a cache and a login of its own in a folder."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # whose storage is not faked
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with serving(Handler, FakeHub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)  # as the client does when it starts
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_URL_HOSTS", frozenset({"127.0.0.1"}))
        yield hub
