"""The Hub's HTTP protocol on 127.0.0.1, as far as the real huggingface_hub client needs it to work with repositories.

`with running_hub() as hub:` gives a [`HubServer`] whose `url` belongs into HF_ENDPOINT. It creates, moves and deletes
repositories, takes commits with regular and large files (git LFS, in one piece or in parts), makes tags and branches,
lists, and serves files of any revision, in ranges too. Xet, the Hub's other protocol for large files, is not spoken:
HF_HUB_DISABLE_XET=1 keeps the client from it. For tests it can refuse requests, break off downloads and say how many
bytes of an upload have arrived.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub_store import File, HubError, HubStore, Repository, git_hash, is_large
from huggingface_hub.repocard_data import model_index_to_eval_results


_REPOSITORY = r"(?P<kind>model|dataset|space)s/(?P<name>[^/]+(?:/[^/]+)?)"
_PLAIN = r"(?:(?P<kind>dataset|space)s/)?(?P<name>[^/]+(?:/[^/]+)?)"
_DATE = "2026-01-01T00:00:00.000Z"


class HubServer(ThreadingHTTPServer):
    """A running Hub.

    Attributes:
        store: what it keeps; tests may look and change.
        requests: method and path of every request so far.
        received: bytes of request bodies so far.
        on_received: called with `received` after each piece of a body.
        part_size: uploads of large files above this come in parts of it; None takes each in one piece.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = HubStore()
        self.requests: list[tuple[str, str]] = []
        self.received = 0
        self.on_received: Callable[[int], None] | None = None
        self.part_size: int | None = None
        self.parts: dict[tuple[str, int], bytes] = {}
        self._refusals: list[list] = []
        self._breaks: list[list] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def cdn(self) -> str:
        """Where large files are: another host than the Hub's, which gets no access token."""
        return f"http://localhost:{self.server_port}"

    def refuse(self, pattern: str, status: int, message: str = "", times: int = 1) -> None:
        """Answer the next requests whose "METHOD /path" matches with an error."""
        self._refusals.append([re.compile(pattern), status, message, times])

    def forgive(self) -> None:
        """Refuse nothing any longer."""
        self._refusals.clear()

    def break_downloads(self, pattern: str, after: int, times: int = 1) -> None:
        """Close the connection of the next matching downloads after so many bytes of the file."""
        self._breaks.append([re.compile(pattern), after, times])

    def repository(self, name: str, kind: str = "model") -> Repository:
        return self.store.repositories[kind, name]

    def refusal(self, request: str) -> tuple[int, str] | None:
        return self._take(self._refusals, request)

    def break_of(self, request: str) -> int | None:
        found = self._take(self._breaks, request)
        return found[0] if found else None

    def _take(self, rules: list[list], request: str) -> list | None:
        with self.store.lock:
            for rule in rules:
                if rule[-1] > 0 and rule[0].search(request):
                    rule[-1] -= 1
                    return rule[1:-1]
        return None

    def handle_error(self, *args) -> None:
        """A client that was killed is not an error of ours."""


@contextmanager
def running_hub() -> Iterator[HubServer]:
    """Start a Hub in a thread of this process, and stop it."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do(self) -> None:
        """Answer any request: find its route, take its body, turn a [`HubError`] into the answer it describes."""
        self.url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(self.url.query).items()}
        self.server.requests.append((self.command, self.url.path))
        try:
            self.body = self._read_body()
            if refusal := self.server.refusal(f"{self.command} {self.url.path}"):
                raise HubError(refusal[0], refusal[1] or f"refused with {refusal[0]}")
            for method, pattern, route in _ROUTES:
                if self.command in method and (match := re.fullmatch(pattern, self.url.path)):
                    names = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                    with self.server.store.lock:
                        answer = route(self, **names)
                    answer()
                    return
            raise HubError(404, f"Sorry, we can't find {self.command} {self.url.path}")
        except HubError as error:
            self._send(error.status, error.headers, json.dumps({"error": error.message}).encode())
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do

    # Bodies and answers

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self._read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self._read(int(self.headers.get("Content-Length") or 0))

    def _read(self, size: int) -> bytes:
        body = bytearray()
        while len(body) < size:
            piece = self.rfile.read1(min(4096, size - len(body)))
            if not piece:
                raise ConnectionResetError("the client is gone")
            body += piece
            self.server.received += len(piece)
            if self.server.on_received:
                self.server.on_received(self.server.received)
        return bytes(body)

    def json(self) -> dict:
        return json.loads(self.body)

    def answer(self, content: dict | list, status: int = 200, headers: dict | None = None) -> Callable[[], None]:
        body = json.dumps(content).encode()
        return lambda: self._send(status, {"Content-Type": "application/json", **(headers or {})}, body)

    def _send(self, status: int, headers: dict[str, str], body: bytes = b"", cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def log_message(self, *args) -> None:
        """Silence."""

    # Who asks

    @property
    def user(self) -> str | None:
        given = self.headers.get("Authorization", "")
        if not given:
            return None
        user = self.server.store.users.get(given.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    def writer(self, name: str) -> str:
        """The user, if this token may write to a repository of this name."""
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        if self.user.endswith("-reader") or name.split("/")[0] not in (self.user, "org"):
            raise HubError(403, f"You don't have the rights to write to {name}")
        return self.user

    def find(self, name: str, kind: str = "model", files: bool = False) -> Repository:
        if new := self.server.store.moved.get((kind, name)):
            # The client follows the relative address.
            raise HubError(307, "Temporary Redirect", Location=self.path.replace(name, new, 1))
        return self.server.store.find(kind, name, self.user, files)

    # Repositories

    def whoami(self):
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        role = "read" if self.user.endswith("-reader") else "write"
        token = {"displayName": "t", "role": role, "createdAt": _DATE}
        auth = {"type": "access_token", "accessToken": token}
        return self.answer({"type": "user", "name": self.user, "orgs": [{"name": "org"}], "auth": auth})

    def create(self):
        wanted = self.json()
        kind = wanted.get("type") or "model"
        owner = wanted.get("organization") or self.user
        name = f"{owner}/{wanted['name']}"
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        user = self.writer(name)
        if (kind, name) in self.server.store.repositories:
            return self.answer({"url": self.page(kind, name), "error": "You already created this repo"}, 409)
        self.server.store.create(kind, name, user, private)
        return self.answer({"url": self.page(kind, name), "name": name})

    def delete(self):
        wanted = self.json()
        kind, name = wanted.get("type") or "model", f"{wanted.get('organization') or self.user}/{wanted['name']}"
        self.writer(name)
        self.find(name, kind)
        del self.server.store.repositories[kind, name]
        return self.answer({})

    def move(self):
        wanted = self.json()
        self.writer(wanted["fromRepo"])
        self.server.store.move(wanted.get("type") or "model", wanted["fromRepo"], wanted["toRepo"])
        return self.answer({})

    def page(self, kind: str, name: str) -> str:
        return f"{self.server.url}/{'' if kind == 'model' else kind + 's/'}{name}"

    def info(self, kind, name, revision="main"):
        repository = self.find(name, kind)
        commit = repository.resolve(revision)
        card = commit.files.get("README.md")
        content = {
            "id": name,
            "author": name.split("/")[0],
            "sha": commit.id,
            "private": repository.readers is not None and not repository.gated,
            "gated": "auto" if repository.gated else False,
            "lastModified": _DATE,
            "tags": [],
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            "cardData": _head(self.server.store.content(card).decode()) if card else None,
        }
        return self.answer(content)

    def refs(self, kind, name):
        repository = self.find(name, kind)
        groups = {"branches": ("refs/heads", repository.branches), "tags": ("refs/tags", repository.tags)}
        content = {
            group: [{"name": k, "ref": f"{prefix}/{k}", "targetCommit": v} for k, v in names.items()]
            for group, (prefix, names) in groups.items()
        }
        return self.answer({**content, "converts": [], "pullRequests": []})

    def commits(self, kind, name, revision):
        return self.answer(
            [
                {"id": c.id, "title": c.title, "message": c.message, "authors": [{"user": "ann"}], "date": _DATE}
                for c in self.find(name, kind).history(revision)
            ]
        )

    def tree(self, kind, name, revision, path=""):
        files = self.find(name, kind).resolve(revision).files
        prefix = path + "/" if path else ""
        inside = {name: file for name, file in files.items() if name.startswith(prefix)}
        if path and not inside:
            raise HubError(404, f"{path} does not exist", "EntryNotFound")
        deep = self.query.get("recursive", "").lower() in ("true", "1")
        folders = {prefix + n.removeprefix(prefix).split("/")[0] for n in inside if "/" in n.removeprefix(prefix)}
        shown = [_entry(n, f) for n, f in inside.items() if deep or "/" not in n.removeprefix(prefix)]
        shown += [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders)]
        return self.answer(shown)

    def paths(self, kind, name, revision):
        files = self.find(name, kind).resolve(revision).files
        text = self.body.decode()
        wanted = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]
        return self.answer([_entry(path, files[path]) for path in wanted if path in files])

    def tag(self, kind, name, revision):
        self.writer(name)
        repository, tag = self.find(name, kind), self.json()["tag"]
        if tag in repository.tags:
            raise HubError(409, f"Reference already exists: {tag}")
        repository.tags[tag] = repository.resolve(revision).id
        return self.answer({})

    def branch(self, kind, name, revision):
        self.writer(name)
        repository = self.find(name, kind)
        if revision in repository.branches:
            raise HubError(409, f"Reference already exists: {revision}")
        repository.branches[revision] = repository.resolve(self.json().get("startingPoint", "main")).id
        return self.answer({})

    # Commits

    def preupload(self, kind, name, revision):
        self.writer(name)
        files = self.find(name, kind).resolve(revision).files
        hosted = self.server.store.content(files[".gitignore"]).decode() if ".gitignore" in files else ""
        ignored = [line.lstrip("/") for line in self.json().get("gitIgnore", hosted).splitlines() if line[:1] != "#"]
        answers = []
        for file in self.json()["files"]:
            large = is_large(file["path"], file["size"], base64.b64decode(file["sample"]))
            known = files.get(file["path"])
            answer = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "oid": known and known.etag}
            answers.append(
                {
                    **answer,
                    "shouldIgnore": any(
                        fnmatch(file["path"], pattern) or fnmatch(file["path"], f"{pattern}/*") for pattern in ignored
                    ),
                }
            )
        return self.answer({"files": answers})

    def commit(self, kind, name, revision):
        """All or nothing: the branch moves once every operation has been found good."""
        self.writer(name)
        repository, store = self.find(name, kind), self.server.store
        operations = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        header = operations[0]["value"]
        head = repository.resolve(revision)
        if header.get("parentCommit", head.id) != head.id:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for operation in operations[1:]:
            value = operation["value"]
            path = value["path"]
            if operation["key"] == "file":
                content = base64.b64decode(value["content"])
                files[path] = File(content, size=len(content))
            elif operation["key"] == "lfsFile":
                if value["oid"] not in store.objects:
                    raise HubError(400, f"LFS pointer pointed to a file that does not exist: {path}")
                files[path] = File(None, value["oid"], len(store.objects[value["oid"]]))
            elif operation["key"] == "deletedFile" and path in files:
                del files[path]
            elif operation["key"] == "deletedFolder":
                files = {n: f for n, f in files.items() if not n.startswith(path.rstrip("/") + "/")}
            else:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        made = store.commit(repository, revision, header["summary"], header["description"], files)
        page = f"{self.page(kind, name)}/commit/{made.id}"
        return self.answer({"success": True, "commitUrl": page, "commitOid": made.id})

    def validate(self):
        """The rules for a card's head that the Hub publishes, as far as a model's card can break them."""
        errors = check_head(self.json()["content"]) if self.json().get("repoType") in (None, "model") else []
        content = {"errors": [{"message": message} for message in errors], "warnings": []}
        return self.answer(content, 400 if errors else 200)

    # Large files

    def lfs_batch(self, name, kind="model"):
        self.writer(name)
        self.find(name, kind)
        return self.answer({"transfer": "basic", "objects": [self._lfs_actions(o) for o in self.json()["objects"]]})

    def _lfs_actions(self, wanted: dict) -> dict:
        answer, oid, step = {"oid": wanted["oid"], "size": wanted["size"]}, wanted["oid"], self.server.part_size
        if oid in self.server.store.objects:
            return answer
        upload = {"href": f"{self.server.url}/lfs/{oid}", "header": {}}
        if step and wanted["size"] > step:
            count = -(-wanted["size"] // step)
            urls = {str(part): f"{self.server.url}/lfs/{oid}/{part}" for part in range(1, count + 1)}
            upload = {"href": f"{self.server.url}/lfs/{oid}/complete", "header": {"chunk_size": str(step), **urls}}
        verify = {"href": f"{self.server.url}/lfs/verify", "header": {}}
        return {**answer, "actions": {"upload": upload, "verify": verify}}

    def lfs_put(self, oid, part=None):
        if part:
            self.server.parts[oid, int(part)] = self.body
            return lambda: self._send(200, {"ETag": f'"{git_hash(self.body)}"'})
        return self._keep(oid, self.body)

    def lfs_complete(self, oid):
        pieces = [self.server.parts.pop((oid, part["partNumber"])) for part in self.json()["parts"]]
        return self._keep(oid, b"".join(pieces))

    def _keep(self, oid: str, content: bytes):
        if hashlib.sha256(content).hexdigest() != oid:
            raise HubError(400, "the content is not what its SHA-256 says")
        self.server.store.objects[oid] = content
        return self.answer({})

    def lfs_verify(self):
        wanted = self.json()
        found = self.server.store.objects.get(wanted["oid"])
        if found is None or len(found) != wanted["size"]:
            raise HubError(404, "the object is not there")
        return self.answer({})

    # Downloads

    def resolve(self, name, revision, path, kind="model"):
        repository = self.find(name, kind, files=True)
        commit = repository.resolve(revision)
        file = commit.files.get(path)
        if file is None:
            raise HubError(404, f"{path} does not exist", "EntryNotFound", **{"X-Repo-Commit": commit.id})
        headers = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes", "ETag": f'"{file.etag}"'}
        if file.sha256:
            linked = {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
            return lambda: self._send(302, {**headers, **linked, "Location": f"{self.server.cdn}/cdn/{file.sha256}"})
        return lambda: self._send_file(self.server.store.content(file), headers)

    def cdn(self, oid):
        if self.user is not None:
            raise HubError(400, "Only one auth mechanism allowed")
        content = self.server.store.objects[oid]
        return lambda: self._send_file(content, {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _send_file(self, content: bytes, headers: dict[str, str]) -> None:
        status, wanted = 200, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}
            status, content = 206, content[first : last + 1]
        cut = self.server.break_of(f"{self.command} {self.url.path}") if self.command == "GET" else None
        self._send(status, headers, content, cut)


def _entry(path: str, file: File) -> dict:
    entry = {"type": "file", "path": path, "size": file.size, "oid": file.etag}
    if file.sha256:
        entry |= {"oid": git_hash(file.sha256.encode()), "lfs": {"oid": file.sha256, "size": file.size}}
        entry["lfs"]["pointerSize"] = 130
    return entry


def _head(card: str) -> dict | None:
    found = re.match(r"\s*---[ \t]*\n(.*?)\n---", card, re.DOTALL)
    return yaml.safe_load(found[1]) if found else None


def check_head(card: str) -> list[str]:
    """What the Hub would say against the head of a model's card."""
    try:
        head = _head(card)
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    if head is None:
        return []
    if not isinstance(head, dict):
        return ["the metadata must be a mapping"]
    errors = []
    for key in ("license", "library_name", "pipeline_tag"):
        values = head.get(key, [])
        values = values if isinstance(values, list) and key == "license" else [values] if key in head else []
        if not all(isinstance(value, str) and re.fullmatch(r"[a-z0-9][a-z0-9.-]*", value) for value in values):
            errors.append(f'"{key}" must be a lower-case name')
    for key in ("base_model", "datasets", "tags", "language"):
        values = head.get(key, [])
        values = [values] if isinstance(values, str) else values
        if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
            errors.append(f'"{key}" must be a name or a list of names')
        elif key == "base_model" and not all(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value) for value in values):
            errors.append('"base_model" must be repository ids')
    try:
        if "model-index" in head:
            model_index_to_eval_results(head["model-index"])
    except (KeyError, TypeError, ValueError) as error:
        errors.append(f'"model-index" is not as specified: {error!r}')
    return errors


# Methods, path, what answers it; the first that fits.
_ROUTES = [
    (("GET",), r"/api/whoami-v2", _Handler.whoami),
    (("POST",), r"/api/repos/create", _Handler.create),
    (("DELETE",), r"/api/repos/delete", _Handler.delete),
    (("POST",), r"/api/repos/move", _Handler.move),
    (("POST",), r"/api/validate-yaml", _Handler.validate),
    (("GET",), rf"/api/{_REPOSITORY}/refs", _Handler.refs),
    (("GET",), rf"/api/{_REPOSITORY}/revision/(?P<revision>[^/]+)", _Handler.info),
    (("GET",), rf"/api/{_REPOSITORY}/commits/(?P<revision>[^/]+)", _Handler.commits),
    (("GET",), rf"/api/{_REPOSITORY}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", _Handler.tree),
    (("POST",), rf"/api/{_REPOSITORY}/paths-info/(?P<revision>[^/]+)", _Handler.paths),
    (("POST",), rf"/api/{_REPOSITORY}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (("POST",), rf"/api/{_REPOSITORY}/commit/(?P<revision>[^/]+)", _Handler.commit),
    (("POST",), rf"/api/{_REPOSITORY}/tag/(?P<revision>[^/]+)", _Handler.tag),
    (("POST",), rf"/api/{_REPOSITORY}/branch/(?P<revision>[^/]+)", _Handler.branch),
    (("GET",), rf"/api/{_REPOSITORY}", _Handler.info),
    (("POST",), rf"/{_PLAIN}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("PUT",), r"/lfs/(?P<oid>[0-9a-f]{64})(?:/(?P<part>\d+))?", _Handler.lfs_put),
    (("POST",), r"/lfs/(?P<oid>[0-9a-f]{64})/complete", _Handler.lfs_complete),
    (("POST",), r"/lfs/verify", _Handler.lfs_verify),
    (("GET", "HEAD"), r"/cdn/(?P<oid>[0-9a-f]{64})", _Handler.cdn),
    (("GET", "HEAD"), rf"/{_PLAIN}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]
