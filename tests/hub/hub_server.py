"""A Hub of our own on the loopback, as far as publishing and downloading knowledge bases needs one.

It keeps repositories in memory: commits, branches, large files by their SHA-256, private repositories, a parent that a
commit insists on. It can be told to fail. No Xet, no paging, no Range requests; what it does not know is answered by
404 and listed in `unknown`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


OWNER_TOKEN = "hf_owner"
LARGE = (".parquet", ".safetensors", ".faiss")


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    refs: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    messages: list[str] = field(default_factory=list)

    def commit_of(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.refs.get(revision, revision)]


class HubServer:
    """Serves until `close`; `url` is its address."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.downloads: list[str] = []
        self.unknown: list[str] = []
        self.uploads_before_failure: int | None = None
        self.num_commits = 0
        self.is_down = False
        self.gated: set[str] = set()
        self.before_commit = lambda: None
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def repository(self, name: str, kind: str = "dataset") -> Repository:
        return self.repositories[kind, name]

    def put(self, name: str, folder: Path, kind: str = "model") -> str:
        """Makes the files of a folder a repository; returns the commit."""
        repository = self.repositories.setdefault((kind, name), Repository(private=False))
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        repository.refs["main"] = self._keep(repository, files)
        return repository.refs["main"]

    def edit(self, name: str, kind: str = "dataset", **files: bytes) -> None:
        """Commits changes of files as if somebody made them on the page of the repository; `__` stands for a dot."""
        repository = self.repository(name, kind)
        contents = {path.replace("__", "."): content for path, content in files.items()}
        repository.refs["main"] = self._keep(repository, {**repository.files(), **contents})

    def _keep(self, repository: Repository, files: dict[str, bytes]) -> str:
        """Keeps a commit under a name that no other has, for clients remember what they saw of it."""
        self.num_commits += 1
        name = hashlib.sha1(str(self.num_commits).encode()).hexdigest()
        repository.commits[name] = files
        return name

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def commit(self, repository: Repository, revision: str, lines: list[dict], as_pull_request: bool) -> str:
        """Applies one commit; returns its name."""
        parent = repository.commit_of(revision)
        files = dict(repository.commits[parent])
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository.messages.append(value["summary"])
                if value.get("parentCommit") not in (None, parent):
                    raise _RefusedError(412, "A commit has happened since. Please refresh and try again.")
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise _RefusedError(400, f"unknown operation {line['key']}")
        name = self._keep(repository, files)
        repository.refs["refs/pr/1" if as_pull_request else revision] = name
        return name


class _RefusedError(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        pass

    def _handle(self) -> None:
        address = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(address.path)
        body = self._body()
        try:
            if any(f"/{name}/" in path for name in self.hub.gated):
                raise _RefusedError(403, "Access to this model is restricted", "GatedRepo")
            if self.hub.is_down:
                raise _RefusedError(418, "the Hub is down")  # a status that clients do not try again
            for method, pattern, answer in _ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split():
                    with self.hub.lock:
                        return answer(self, body, urllib.parse.parse_qs(address.query), **match.groupdict())
            self.hub.unknown.append(f"{self.command} {path}")
            raise _RefusedError(404, f"unknown: {path}")
        except _RefusedError as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self._send(refusal.status, json.dumps({"error": refusal.message}).encode(), headers)

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().strip(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _answer(self, content: dict | list) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _repository(self, kind: str, name: str) -> Repository:
        repository = self.hub.repositories.get((kind.removesuffix("s") or "model", name))
        is_owner = self.headers.get("Authorization") == f"Bearer {OWNER_TOKEN}"
        if repository is None or (repository.private and not is_owner):
            raise _RefusedError(404, "Repository not found", "RepoNotFound")
        return repository

    def _commit_of(self, repository: Repository, revision: str) -> str:
        name = repository.commit_of(revision)
        if name is None:
            raise _RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return name

    def create(self, body, query) -> None:
        wish = json.loads(body)
        key = (wish.get("type") or "model", f"{wish.get('organization') or 'me'}/{wish['name']}")
        address = f"{self.hub.url}/{'' if key[0] == 'model' else 'datasets/'}{key[1]}"
        if key in self.hub.repositories:
            return self._send(409, json.dumps({"error": "You already created this repo", "url": address}).encode())
        self.hub.repositories[key] = Repository(
            "private" in (wish.get("visibility"), "private" if wish.get("private") else None)
        )
        self._answer({"url": address, "name": key[1], "id": key[1]})

    def validate_card(self, body, query) -> None:
        self._answer({"errors": [], "warnings": []})

    def info(self, body, query, kind, name, revision="main") -> None:
        repository = self._repository(kind, name)
        sha = self._commit_of(repository, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(repository.commits[sha])]
        self._answer({"id": name, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []})

    def tree(self, body, query, kind, name, revision, folder="") -> None:
        """All files below a folder, or, unless it is asked for recursively, its files and the folders in it."""
        repository = self._repository(kind, name)
        files = repository.commits[self._commit_of(repository, revision)]
        prefix = f"{folder}/" if folder else ""
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = {}
        for path in sorted(path for path in files if path.startswith(prefix)):
            first, slash, _ = path.removeprefix(prefix).partition("/")
            if slash and not recursive:
                entries[prefix + first] = {"type": "directory", "path": prefix + first, "oid": "0" * 40, "size": 0}
            else:
                entries[path] = {"type": "file", "path": path, **_described(path, files[path])}
        self._answer(list(entries.values()))

    def branch(self, body, query, kind, name, revision) -> None:
        repository = self._repository(kind, name)
        if revision in repository.refs:
            raise _RefusedError(409, "Reference already exists")
        repository.refs[revision] = repository.refs["main"]
        self._answer({})

    def preupload(self, body, query, kind, name, revision) -> None:
        files = self._repository(kind, name).files(revision)
        answers = []
        for wish in json.loads(body)["files"]:
            mode = "lfs" if wish["path"].endswith(LARGE) else "regular"
            known = _described(wish["path"], files[wish["path"]]) if wish["path"] in files else {}
            oid = known["lfs"]["oid"] if "lfs" in known else known.get("oid")
            answers.append({"path": wish["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer({"files": answers})

    def large_batch(self, body, query, kind, name) -> None:
        self._repository(kind or "", name)
        objects = []
        for wish in json.loads(body)["objects"]:
            known = wish["oid"] in self.hub.large
            upload = {"upload": {"href": f"{self.hub.url}/large/{wish['oid']}", "header": {}}}
            objects.append({"oid": wish["oid"], "size": wish["size"], **({} if known else {"actions": upload})})
        self._answer({"transfer": "basic", "objects": objects})

    def upload(self, body, query, oid) -> None:
        if self.hub.uploads_before_failure is not None and len(self.hub.uploads) >= self.hub.uploads_before_failure:
            raise _RefusedError(507, "no room left")
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        self.hub.uploads.append(oid)
        self._send(200, b"")

    def commit(self, body, query, kind, name, revision) -> None:
        self.hub.before_commit()
        repository = self._repository(kind, name)
        self._commit_of(repository, revision)
        as_pull_request = query.get("create_pr") == ["1"]
        sha = self.hub.commit(repository, revision, [json.loads(line) for line in body.splitlines()], as_pull_request)
        url = f"{self.hub.url}/{name}"
        pull_request = f"{url}/discussions/1" if as_pull_request else None
        self._answer({"commitOid": sha, "commitUrl": f"{url}/commit/{sha}", "pullRequestUrl": pull_request})

    def move(self, body, query, sha) -> None:
        """Not a route of the Hub: lets the main branches that have a commit point to it."""
        for repository in self.hub.repositories.values():
            if sha in repository.commits:
                repository.refs["main"] = sha
        self._answer({})

    def download(self, body, query, kind, name, revision, path) -> None:
        repository = self._repository(kind or "", name)
        sha = self._commit_of(repository, revision)
        content = repository.commits[sha].get(path)
        if content is None:
            raise _RefusedError(404, "Entry not found", "EntryNotFound")
        if self.command == "GET":
            self.hub.downloads.append(path)
        described = _described(path, content)
        etag = described["lfs"]["oid"] if "lfs" in described else described["oid"]
        self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "X-Linked-Size": str(len(content))})


def _described(path: str, content: bytes) -> dict:
    described = {"size": len(content), "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}
    if path.endswith(LARGE):
        described["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return described


_API = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
_PLAIN = r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>refs/pr/\d+|[^/]+)"
_ROUTES = (
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_card),
    ("GET", _API, _Handler.info),
    ("GET", _API + "/revision/" + _REVISION, _Handler.info),
    ("GET", _API + "/tree/" + _REVISION + "(?:/(?P<folder>.+))?", _Handler.tree),
    ("POST", _API + "/branch/" + _REVISION, _Handler.branch),
    ("POST", _API + "/preupload/" + _REVISION, _Handler.preupload),
    ("POST", _API + "/commit/" + _REVISION, _Handler.commit),
    ("POST", _PLAIN + r"\.git/info/lfs/objects/batch", _Handler.large_batch),
    ("GET", "/move/(?P<sha>[0-9a-f]{40})", _Handler.move),
    ("PUT", r"/large/(?P<oid>[0-9a-f]{64})", _Handler.upload),
    ("GET HEAD", _PLAIN + "/resolve/" + _REVISION + "/(?P<path>.+)", _Handler.download),
)
