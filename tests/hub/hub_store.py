"""What a Hub keeps: repositories with their commits, branches and tags, large objects, and who may do what.

The HTTP in front of it is hub_server.py. Everything is in memory; a commit's id is a hash of what it holds and of its
parent, so that two histories are equal exactly when their last ids are.
"""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from pathlib import PurePosixPath


# What the Hub stores as large files whatever their size: its default .gitattributes, as far as our tests go.
LARGE_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".pkl", ".zip", ".parquet", ".npz", ".npy", ".png", ".gz"}
LARGE_SIZE = 10_000_000


class HubError(Exception):
    """An answer that is not a success; the client reads `code` from the header X-Error-Code."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


@dataclass(frozen=True)
class File:
    """One file of a commit: its bytes, or the name of the large object that holds them."""

    content: bytes | None
    sha256: str | None = None
    size: int = 0

    @property
    def etag(self) -> str:
        """SHA-256 of a large file, git's SHA-1 of another."""
        return self.sha256 or git_hash(self.content)


@dataclass(frozen=True)
class Commit:
    id: str
    title: str
    message: str
    parent: str | None
    files: dict[str, File]


@dataclass
class Repository:
    """`readers` None: public. `gated`: its files, not its name, are for `readers` only."""

    kind: str
    name: str
    readers: set[str] | None = None
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, a tag or an id stands for."""
        known = self.branches.get(revision) or self.tags.get(revision) or revision
        if known not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[known]

    def history(self, revision: str = "main") -> list[Commit]:
        """Commits from the newest to the first."""
        commit, found = self.resolve(revision), []
        while commit is not None:
            found.append(commit)
            commit = self.commits.get(commit.parent)
        return found


class HubStore:
    """All repositories of one Hub.

    Attributes:
        users: access token -> name of its user; a name that ends in "-reader" may write nothing.
        moved: former (kind, name) of a repository -> its name now.
        objects: large objects by SHA-256.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.users = {"token-of-ann": "ann", "token-of-bob": "bob", "token-of-a-reader": "a-reader"}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.moved: dict[tuple[str, str], str] = {}
        self.objects: dict[str, bytes] = {}

    def create(self, kind: str, name: str, user: str, private: bool) -> Repository:
        if (kind, name) in self.repositories:
            raise HubError(409, "You already created this repo")
        repository = Repository(kind, name, readers={user} if private else None)
        self.repositories[kind, name] = repository
        self.commit(
            repository, "main", "initial commit", "", {".gitattributes": File(b"*.safetensors lfs\n", size=18)}
        )
        return repository

    def find(self, kind: str, name: str, user: str | None, files: bool = False) -> Repository:
        """The repository if the user may know of it, and of its files if asked for them."""
        repository = self.repositories.get((kind, name))
        allowed = repository is not None and (repository.readers is None or user in repository.readers)
        if repository is None or not (allowed or repository.gated):
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        if files and not allowed:
            status, why = (403, "you are not in the authorized list") if user else (401, "please log in")
            raise HubError(status, f"Access to model {name} is restricted: {why}.", "GatedRepo")
        return repository

    def move(self, kind: str, old: str, new: str, redirect: bool = True) -> None:
        repository = self.repositories.pop((kind, old))
        repository.name = new
        self.repositories[kind, new] = repository
        if redirect:
            self.moved[kind, old] = new

    def commit(self, repository: Repository, branch: str, title: str, message: str, files: dict[str, File]) -> Commit:
        """Make a branch's next commit, which holds exactly these files."""
        parent = repository.branches.get(branch)
        if parent is None and repository.commits:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        tree = sorted((path, file.etag) for path, file in files.items())
        identity = hashlib.sha1(json.dumps([repository.kind, parent, title, tree]).encode()).hexdigest()
        commit = Commit(identity, title, message, parent, files)
        repository.commits[identity] = commit
        repository.branches[branch] = identity
        return commit

    def content(self, file: File) -> bytes:
        return self.objects[file.sha256] if file.sha256 else file.content


def git_hash(content: bytes) -> str:
    """Git's id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub wants a file as a large one."""
    binary = b"\0" in sample
    return size > 0 and (size > LARGE_SIZE or PurePosixPath(path).suffix in LARGE_SUFFIXES or binary)
