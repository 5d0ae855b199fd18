"""A Hub on this machine: the calls that `huggingface_hub` makes to push and to load, answered over HTTP.

Repositories are kept in memory: branches of commits, each a tree of path to content. `LocalHub.fail` makes one kind of
call answer with an error, or cut the connection. Large files go by LFS (the client runs with HF_HUB_DISABLE_XET), in
one part or, above `PART` bytes, in several.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


TOKEN = "hf_aLocalTokenThatMayWrite0123456789"
READER = "hf_aLocalTokenThatMayOnlyRead012345"
USER = "me"
LARGE = (".safetensors", ".parquet", ".ddr")
PART = 40_000


@dataclass
class Repo:
    """Branches of commits; a commit is its name and a tree."""

    private: bool | None
    branches: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, bytes]:
        return self.branches["main"][-1][1]

    def find(self, revision: str):
        for name, commits in self.branches.items():
            for commit in commits:
                if revision == commit[0]:
                    return commit
            if revision == name:
                return commits[-1]
        return None


class LocalHub:
    """Start with `with LocalHub() as hub`; `hub.environment(home)` is what a client process needs."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.calls: list[str] = []
        self.failures: dict[str, tuple[int, str, str | None]] = {}
        self._lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]

    def __enter__(self) -> LocalHub:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, home, token: str = TOKEN, endpoint: str | None = None) -> dict[str, str]:
        return {
            "HF_ENDPOINT": endpoint or self.url,
            "HF_TOKEN": token,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def fail(self, call: str, code: int, message: str = "", repo: str | None = None) -> None:
        """Let a call ("commit", "upload", ...) answer with `code`, for one repository or all; 0 hangs up half-way."""
        self.failures[call] = (code, message, repo)

    def repo(self, name: str, kind: str = "model") -> Repo:
        return self.repos[kind, name]


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer_call()

    def do_HEAD(self) -> None:
        self.answer_call()

    def do_POST(self) -> None:
        self.answer_call()

    def do_PUT(self) -> None:
        self.answer_call()

    # -- routing ---------------------------------------------------------------------------------------------------

    def answer_call(self) -> None:
        address = urlsplit(self.path)
        path, self.query = unquote(address.path), parse_qs(address.query)
        fitting = [
            (re.fullmatch(pattern, path), name) for methods, pattern, name in _ROUTES if self.command in methods
        ]
        found, name = next(((match, name) for match, name in fitting if match), (None, ""))
        if found is None:
            self.body()
            return self.error(404, "no such call", "EntryNotFound")
        self.hub.calls.append(name)
        code, message, repo = self.hub.failures.get(name, (None, "", None))
        if code is not None and repo in (None, found.groupdict().get("name")):
            if code == 0:
                return self.cut()
            self.body()
            return self.error(code, message)
        body = self.body()
        if name not in ("upload", "upload_part", "complete", "validate") and self.token() is None:
            return self.error(401, "Invalid credentials in Authorization header")
        if name in _WRITES and self.token() != TOKEN:
            return self.error(403, f"Forbidden: you must use a write token to {name} {self.path}")
        with self.hub._lock:
            getattr(self, f"on_{name}")(body, **found.groupdict())

    def token(self) -> str | None:
        sent = (self.headers.get("authorization") or "").removeprefix("Bearer ")
        return sent if sent in (TOKEN, READER) else None

    def body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def cut(self) -> None:
        """Take a little of what is sent, then hang up."""
        self.rfile.read(min(1000, int(self.headers.get("content-length") or 0)))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def send(self, code: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        if "content_length" not in headers:
            self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def json(self, value: object, code: int = 200) -> None:
        self.send(code, json.dumps(value).encode())

    def error(self, code: int, message: str, kind: str = "") -> None:
        headers = {"x_error_message": message} if message else {}
        if kind:
            headers["x_error_code"] = kind
        self.send(code, json.dumps({"error": message}).encode(), **headers)

    def found(self, kind: str | None, name: str) -> Repo | None:
        repo = self.hub.repos.get(((kind or "models").strip("/").removesuffix("s"), name))
        if repo is None:
            self.error(404, "Repository not found", "RepoNotFound")
        return repo

    # -- account and repositories ----------------------------------------------------------------------------------

    def on_whoami(self, body: bytes) -> None:
        role = "write" if self.token() == TOKEN else "read"
        self.json({"type": "user", "name": USER, "auth": {"accessToken": {"displayName": "test", "role": role}}})

    def on_create(self, body: bytes) -> None:
        asked = json.loads(body)
        owner = asked.get("organization") or USER
        if owner != USER:
            return self.error(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        kind, name = asked.get("type") or "model", f"{owner}/{asked['name']}"
        url = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.hub.repos:
            return self.json({"error": "You already created this repo", "url": url}, 409)
        private = None if "visibility" not in asked else asked["visibility"] == "private"
        first = (_digest(f"{kind} {name}".encode()), {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.hub.repos[kind, name] = Repo(private, {"main": [first]})
        self.json({"url": url, "name": name})

    def on_branch(self, body: bytes, kind: str, name: str, branch: str) -> None:
        repo = self.found(kind, name)
        if repo is None:
            return
        if branch in repo.branches:
            return self.error(409, "Reference already exists")
        repo.branches[branch] = list(repo.branches["main"])
        self.json({})

    def on_info(self, body: bytes, kind: str, name: str, revision: str | None = None) -> None:
        repo = self.found(kind, name)
        if repo is None:
            return
        commit = repo.find(revision or "main")
        if commit is None:
            return self.error(404, "no such revision", "RevisionNotFound")
        files = [{"rfilename": path} for path in sorted(commit[1])]
        self.json(
            {"id": name, "sha": commit[0], "siblings": files, "private": bool(repo.private), "tags": []}
            | {"downloads": 0, "likes": 0, "gated": False, "disabled": False}
        )

    def on_tree(self, body: bytes, kind: str, name: str, revision: str, under: str | None = None) -> None:
        repo = self.found(kind, name)
        commit = None if repo is None else repo.find(revision)
        if commit is None:
            return None if repo is None else self.error(404, "no such revision", "RevisionNotFound")
        inside = {path: data for path, data in commit[1].items() if not under or path.startswith(f"{under}/")}
        if not inside:
            return self.error(404, f"{under} does not exist", "EntryNotFound")
        entries = []
        for path, data in sorted(inside.items()):
            entry = {"type": "file", "path": path, "size": len(data), "oid": _blob(data)}
            if path.endswith(LARGE):
                entry["lfs"] = {"oid": _sha256(data), "size": len(data), "pointerSize": 130}
            entries.append(entry)
        self.json(entries)

    # -- pushing ---------------------------------------------------------------------------------------------------

    def on_validate(self, body: bytes) -> None:
        text = json.loads(body)["content"]
        found = re.match(r"\A---\r?\n(.*?)\r?\n---", text, re.S)
        try:
            data = yaml.safe_load(found[1]) if found else None
        except yaml.YAMLError as error:
            return self.json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        errors = [{"message": line} for line in metadata_errors(data)]
        self.json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def on_preupload(self, body: bytes, kind: str, name: str, revision: str) -> None:
        repo = self.found(kind, name)
        if repo is None:
            return
        tree = (repo.find(revision) or ("", {}))[1]
        answer = []
        for file in json.loads(body)["files"]:
            base64.b64decode(file["sample"], validate=True)
            mode = "lfs" if file["path"].endswith(LARGE) else "regular"
            old = tree.get(file["path"])
            oid = None if old is None else _sha256(old) if mode == "lfs" else _blob(old)
            answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.json({"files": answer})

    def on_lfs(self, body: bytes, kind: str | None, name: str) -> None:
        if self.found(kind, name) is None:
            return
        asked, objects = json.loads(body), []
        for item in asked["objects"]:
            oid, size = item["oid"], item["size"]
            answer = {"oid": oid, "size": size}
            if oid not in self.hub.objects:
                upload = {"href": f"{self.hub.url}/store/{oid}?X-Amz-Signature=5ecret5ignature"}
                if size > PART:
                    count = -(-size // PART)
                    parts = {f"{i + 1:05d}": f"{self.hub.url}/store/{oid}/{i + 1}" for i in range(count)}
                    upload = {"href": f"{self.hub.url}/complete/{oid}", "header": {"chunk_size": str(PART), **parts}}
                verify = {"href": f"{self.hub.url}/verify/{oid}"}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        self.json({"transfer": "basic", "objects": objects})

    def on_upload(self, body: bytes, oid: str) -> None:
        if _sha256(body) != oid:
            return self.error(400, "the content has another hash")
        self.hub.objects[oid] = body
        self.send(200)

    def on_upload_part(self, body: bytes, oid: str, part: str) -> None:
        self.hub.parts[oid, int(part)] = body
        self.send(200, etag=f'"{_digest(body)}"')

    def on_complete(self, body: bytes, oid: str) -> None:
        parts = [self.hub.parts[oid, part["partNumber"]] for part in json.loads(body)["parts"]]
        self.on_upload(b"".join(parts), oid)

    def on_verify(self, body: bytes, oid: str) -> None:
        asked = json.loads(body)
        if len(self.hub.objects.get(oid, b"")) != asked["size"]:
            return self.error(400, "the object is not there or has another size")
        self.json({})

    def on_commit(self, body: bytes, kind: str, name: str, revision: str) -> None:
        repo = self.found(kind, name)
        if repo is None:
            return
        lines = [json.loads(line) for line in body.splitlines()]
        if lines[0]["key"] != "header" or not lines[0]["value"]["summary"]:
            return self.error(400, "the first line must be the header with a summary")
        tree = dict(repo.branches[revision][-1][1])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"], validate=True)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return self.error(400, f"{value['path']} was not uploaded")
                tree[value["path"]] = self.hub.objects[value["oid"]]
            else:
                return self.error(400, f"unknown operation {line['key']}")
        sha = _digest(body + revision.encode())
        repo.branches[revision].append((sha, tree))
        self.json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})

    # -- loading ---------------------------------------------------------------------------------------------------

    def on_resolve(self, body: bytes, kind: str | None, name: str, revision: str, file: str) -> None:
        repo = self.found(kind, name)
        if repo is None:
            return
        commit = repo.find(revision)
        if commit is None:
            return self.error(404, "no such revision", "RevisionNotFound")
        data = commit[1].get(file)
        if data is None:
            self.send(404, x_error_code="EntryNotFound", x_error_message="no such file", x_repo_commit=commit[0])
            return
        tag = _sha256(data) if file.endswith(LARGE) else _blob(data)
        headers = {"etag": f'"{tag}"', "x_repo_commit": commit[0], "accept_ranges": "bytes"}
        if self.command == "HEAD":
            headers["content_length"] = str(len(data))
        self.send(200, data, **headers)


_KIND, _REPO = r"(?P<kind>models|datasets)", r"(?P<name>[\w.-]+/[\w.-]+)"
_ROUTES = (
    (("GET",), r"/api/whoami-v2", "whoami"),
    (("POST",), r"/api/repos/create", "create"),
    (("POST",), r"/api/validate-yaml", "validate"),
    (("POST",), rf"/api/{_KIND}/{_REPO}/branch/(?P<branch>.+)", "branch"),
    (("POST",), rf"/api/{_KIND}/{_REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
    (("POST",), rf"/api/{_KIND}/{_REPO}/commit/(?P<revision>[^/]+)", "commit"),
    (("GET",), rf"/api/{_KIND}/{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<under>.*))?", "tree"),
    (("GET",), rf"/api/{_KIND}/{_REPO}(?:/revision/(?P<revision>[^/]+))?", "info"),
    (("POST",), rf"/(?P<kind>datasets/)?{_REPO}\.git/info/lfs/objects/batch", "lfs"),
    (("PUT",), r"/store/(?P<oid>\w+)", "upload"),
    (("PUT",), r"/store/(?P<oid>\w+)/(?P<part>\d+)", "upload_part"),
    (("POST",), r"/complete/(?P<oid>\w+)", "complete"),
    (("POST",), r"/verify/(?P<oid>\w+)", "verify"),
    (("GET", "HEAD"), rf"/(?P<kind>datasets/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", "resolve"),
)
_WRITES = ("create", "branch", "preupload", "lfs", "commit")


def metadata_errors(data: object) -> list[str]:
    """What the Hub refuses in a card's metadata, as far as cards of this library could have it wrong."""
    if not isinstance(data, dict):
        return ["the metadata is no mapping"]
    errors = [f'"{key}" must not be empty' for key, value in data.items() if value is None]
    wanted = {"license": str, "library_name": str, "pipeline_tag": str, "tags": list, "base_model": (str, list)}
    for key, kind in wanted.items():
        if key in data and not isinstance(data[key], kind):
            errors.append(f'"{key}" has the wrong type')
    base = data.get("base_model")
    if isinstance(base, str) and not re.fullmatch(r"[\w.-]+/[\w.-]+", base):
        errors.append(f'"base_model" {base!r} is no name of a repository')
    for model in data.get("model-index", []):
        if not isinstance(model.get("name"), str):
            errors.append('"model-index[0].name" is required')
        for result in model.get("results", []):
            if not isinstance(result.get("task", {}).get("type"), str):
                errors.append('"model-index" needs a task type')
            if not all(isinstance(result.get("dataset", {}).get(key), str) for key in ("type", "name")):
                errors.append('"model-index" needs type and name of the data set')
            for metric in result.get("metrics", ()):
                if not isinstance(metric.get("type"), str) or not isinstance(metric.get("value"), int | float):
                    errors.append('"model-index" needs type and value of each metric')
    return errors


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
