"""A Hub for tests, in memory and on 127.0.0.1: repositories, commits, large files, branches and pull requests.

It answers what `huggingface_hub`, `datasets` and `transformers` ask when they push and load, without Xet. Tokens:
`WRITER` owns the namespace "me", `READER` may read what is public. Everything that is received is kept, so that a test
can look whether something was sent that should not have been.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


WRITER, READER = "hf_writer", "hf_reader"
LARGE = (".parquet", ".safetensors", ".faiss", ".png", ".bin")
DATE = "2024-01-01T00:00:00.000Z"
TYPES = {"": "model", "datasets": "dataset", "spaces": "space", "models": "model"}


@dataclass
class Repository:
    """Commits (path -> content, by id) and the branches that point at them."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], title: str) -> str:
        oid = hashlib.sha1(f"{id(self)} {len(self.commits)}".encode()).hexdigest()
        self.commits[oid], self.titles[oid], self.branches[branch] = files, title, oid
        return oid

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, headers: dict[str, str] | None = None):
        self.status, self.code, self.headers = status, code, headers or {}


class HubServer(ThreadingHTTPServer):
    """The server and what it holds.

    Attributes:
        repositories (`dict`): By type and id.
        blobs (`dict`): Large files that were received, by SHA-256.
        uploads (`list`): The SHA-256 of every large file received, in order.
        on_upload (`Callable`, *optional*): Called before a large file is kept.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.on_upload: Callable[[], None] | None = None

    def start(self) -> HubServer:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def files(self, repo_id: str, repo_type: str = "dataset", revision: str = "main") -> dict[str, bytes]:
        return self.repositories[repo_type, repo_id].files(revision)

    def replace(self, repo_id: str, **files: bytes) -> None:
        """Puts other content into a dataset repository, as a publisher with ill intent might."""
        repository = self.repositories["dataset", repo_id]
        repository.commit("main", repository.files() | files, "replaced")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self) -> None:
        self.body = self._read()
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        try:
            for methods, pattern, work in ROUTES:
                found = re.fullmatch(pattern, address.path)
                if found and self.command in methods:
                    with self.server.lock:
                        return work(self, **found.groupdict())
            raise Refused(404, "NoRoute")
        except Refused as refused:
            text = {"X-Error-Code": refused.code, "X-Error-Message": refused.code}
            self.send(refused.status, {"error": refused.code}, text | refused.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def may_write(self, repo_id: str) -> None:
        if not self.token:
            raise Refused(401, "Unauthorized")
        if self.token != WRITER or not repo_id.startswith("me/"):
            raise Refused(403, "Forbidden")

    def repository(self, kind: str, repo_id: str, write: bool = False) -> Repository:
        found = self.server.repositories.get((TYPES[kind], repo_id))
        if found is None or (found.private and self.token != WRITER):
            raise Refused(404, "RepoNotFound")
        if write:
            self.may_write(repo_id)
        return found

    def revision(self, repository: Repository, revision: str) -> str:
        name = unquote(revision)
        oid = repository.branches.get(name, name)
        if oid not in repository.commits:
            raise Refused(404, "RevisionNotFound")
        return oid


def whoami(h: Handler) -> None:
    if h.token not in (WRITER, READER):
        raise Refused(401, "Unauthorized")
    role = {"displayName": "test", "role": "write" if h.token == WRITER else "read", "createdAt": DATE}
    name = "me" if h.token == WRITER else "reader"
    h.send(200, {"type": "user", "id": "1", "name": name, "orgs": [], "auth": {"accessToken": role}})


def create(h: Handler) -> None:
    asked = json.loads(h.body)
    repo_id, kind = f"{asked.get('organization') or 'me'}/{asked['name']}", asked.get("type") or "model"
    h.may_write(repo_id)
    url = f"{h.server.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
    if (kind, repo_id) in h.server.repositories:
        return h.send(409, {"error": "exists", "url": url})
    repository = Repository(private=asked.get("visibility") == "private" or bool(asked.get("private")))
    repository.commit("main", {".gitattributes": b""}, "initial commit")
    h.server.repositories[kind, repo_id] = repository
    h.send(200, {"url": url, "name": repo_id, "id": repo_id})


def validate(h: Handler) -> None:
    asked = json.loads(h.body)
    errors = [] if asked["content"].startswith("---\n") else [{"message": "no metadata"}]
    h.send(200, {"errors": errors, "warnings": []})


def info(h: Handler, kind: str, repo_id: str, revision: str = "main") -> None:
    repository = h.repository(kind, repo_id)
    oid = h.revision(repository, revision)
    siblings = [{"rfilename": path} | _describe(path, data) for path, data in repository.commits[oid].items()]
    known = {
        "id": repo_id,
        "sha": oid,
        "lastModified": DATE,
        "createdAt": DATE,
        "tags": [],
        "downloads": 0,
        "likes": 0,
    }
    h.send(200, known | {"private": repository.private, "gated": False, "disabled": False, "siblings": siblings})


def preupload(h: Handler, kind: str, repo_id: str, revision: str) -> None:
    repository = h.repository(kind, repo_id, write="create_pr" not in h.query)
    there = repository.commits[h.revision(repository, revision)]
    files = []
    for file in json.loads(h.body)["files"]:
        path = file["path"]
        known = {"oid": _describe(path, there[path])["oid"]} if path in there else {}
        mode = "lfs" if path.endswith(LARGE) else "regular"
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False} | known)
    h.send(200, {"files": files})


def batch(h: Handler, kind: str | None, repo_id: str) -> None:
    h.repository((kind or "").rstrip("/"), repo_id)
    objects = []
    for item in json.loads(h.body)["objects"]:
        url = {"href": f"{h.server.url}/_blobs/{item['oid']}", "header": {}}
        needed = {} if item["oid"] in h.server.blobs else {"actions": {"upload": url}}
        objects.append({"oid": item["oid"], "size": item["size"], "authenticated": True} | needed)
    h.send(200, {"transfer": "basic", "objects": objects, "hash_algo": "sha256"})


def blob(h: Handler, oid: str) -> None:
    if h.server.on_upload is not None:
        h.server.on_upload()
    if hashlib.sha256(h.body).hexdigest() != oid:
        raise Refused(400, "BadDigest")
    h.server.blobs[oid] = h.body
    h.server.uploads.append(oid)
    h.send(200, {})


def commit(h: Handler, kind: str, repo_id: str, revision: str) -> None:
    asks_to_merge = "create_pr" in h.query
    repository = h.repository(kind, repo_id, write=not asks_to_merge)
    files, title = dict(repository.commits[h.revision(repository, revision)]), ""
    for line in h.body.splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "header":
            title = value["summary"]
        elif entry["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif entry["key"] == "lfsFile":
            files[value["path"]] = h.server.blobs[value["oid"]]
        elif entry["key"] == "deletedFile":
            del files[value["path"]]
    number = sum(name.startswith("refs/pr/") for name in repository.branches) + 1
    oid = repository.commit(f"refs/pr/{number}" if asks_to_merge else unquote(revision), files, title)
    page = f"{h.server.url}/{'' if kind == 'models' else kind + '/'}{repo_id}"
    opened = {"pullRequestUrl": f"{page}/discussions/{number}"} if asks_to_merge else {}
    h.send(200, {"success": True, "commitOid": oid, "commitUrl": f"{page}/commit/{oid}"} | opened)


def tree(h: Handler, kind: str, repo_id: str, revision: str, path: str | None = None) -> None:
    repository = h.repository(kind, repo_id)
    files = repository.commits[h.revision(repository, revision)]
    inside = f"{unquote(path).strip('/')}/" if path and path.strip("/") else ""
    below = [name for name in sorted(files) if name.startswith(inside)]
    if inside and not below:
        raise Refused(404, "EntryNotFound")
    deep = h.query.get("recursive", ["false"])[0].lower() in ("true", "1")
    folders = {inside + rest[: i + 1] for rest in (n[len(inside) :] for n in below) for i in _slashes(rest, deep)}
    shown = [name for name in below if deep or "/" not in name[len(inside) :]]
    entries = [_folder(name.rstrip("/")) for name in sorted(folders)]
    h.send(200, entries + [{"type": "file", "path": name} | _describe(name, files[name]) for name in shown])


def paths_info(h: Handler, kind: str, repo_id: str, revision: str) -> None:
    repository = h.repository(kind, repo_id)
    files = repository.commits[h.revision(repository, revision)]
    text = h.body.decode()
    asked = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
    entries = []
    for path in (name.strip("/") for name in asked):
        if path in files:
            entries.append({"type": "file", "path": path} | _describe(path, files[path]))
        elif any(name.startswith(f"{path}/") for name in files):
            entries.append(_folder(path))
    h.send(200, entries)


def branch(h: Handler, kind: str, repo_id: str, revision: str) -> None:
    repository = h.repository(kind, repo_id, write=True)
    if unquote(revision) in repository.branches:
        raise Refused(409, "Reference already exists")
    repository.branches[unquote(revision)] = repository.branches["main"]
    h.send(200, {})


def resolve(h: Handler, kind: str | None, repo_id: str, revision: str, path: str) -> None:
    repository = h.repository((kind or "").rstrip("/"), repo_id)
    oid = h.revision(repository, revision)
    data = repository.commits[oid].get(unquote(path))
    if data is None:
        raise Refused(404, "EntryNotFound", {"X-Repo-Commit": oid})
    tag = f'"{_describe(path, data)["oid"]}"'
    headers = {"X-Repo-Commit": oid, "ETag": tag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    if path.endswith(LARGE):
        headers |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": tag}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", h.headers.get("Range", ""))
    if wanted is None:
        return h.send(200, data, headers)
    first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
    h.send(206, data[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"})


def _describe(path: str, data: bytes) -> dict[str, Any]:
    if path.endswith(LARGE):
        digest = hashlib.sha256(data).hexdigest()
        large = {"oid": digest, "sha256": digest, "size": len(data), "pointerSize": 134}
        return {"oid": digest, "size": len(data), "lfs": large}
    return {"oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), "size": len(data)}


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def _slashes(rest: str, deep: bool) -> list[int]:
    places = [i for i, letter in enumerate(rest) if letter == "/"]
    return places if deep else places[:1]


REPO = r"(?P<repo_id>[^/]+/[^/]+)"
API, PAGE = rf"/api/(?P<kind>models|datasets|spaces)/{REPO}", rf"/(?P<kind>datasets/|spaces/)?{REPO}"
REVISION = r"(?P<revision>[^/]+)"
ROUTES = [
    (("GET",), "/api/whoami-v2", whoami),
    (("POST",), "/api/repos/create", create),
    (("POST",), "/api/validate-yaml", validate),
    (("GET",), API, info),
    (("GET",), rf"{API}/revision/{REVISION}", info),
    (("GET",), rf"{API}/tree/{REVISION}(?:/(?P<path>.*))?", tree),
    (("POST",), rf"{API}/paths-info/{REVISION}", paths_info),
    (("POST",), rf"{API}/preupload/{REVISION}", preupload),
    (("POST",), rf"{API}/commit/{REVISION}", commit),
    (("POST",), rf"{API}/branch/{REVISION}", branch),
    (("POST",), rf"{PAGE}\.git/info/lfs/objects/batch", batch),
    (("PUT",), r"/_blobs/(?P<oid>[0-9a-f]{64})", blob),
    (("GET", "HEAD"), rf"{PAGE}/resolve/{REVISION}/(?P<path>.+)", resolve),
]
