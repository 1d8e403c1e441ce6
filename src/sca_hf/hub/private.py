"""What leaves this machine with a model: files by a list of names, without folders of this machine, and no secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import safe_open

from ..modeling.adapters_sca import ADAPTER_FOLDER


# What a repository of ours has, beside its code and the weight files of an index.
NAMES = {
    *("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja", "requirements.txt"),
    *("model.safetensors", "model.safetensors.index.json", "metrics.json", "evaluation.json", "recipe.yaml"),
    *("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.md", "NOTICE.txt", "CREDITS.md"),
    *(f"{ADAPTER_FOLDER}/{name}" for name in ("adapter_config.json", "adapter_model.safetensors", "README.md")),
}
# What nothing loads or runs: it stays in a repository that has it. With tables and settings it may be included.
_INERT = {".md", ".txt", ".rst", ".pdf", ".png", ".jpg", ".jpeg", ".webp", ".gif", ".svg", ".csv", ".tsv", ".jsonl"}
_KEPT = {".gitattributes", ".gitignore", "LICENSE", "NOTICE"}
_READ = {"vocab.txt", "merges.txt", "requirements.txt", "packages.txt", "pre-requirements.txt"}
INCLUDABLE = _INERT | {".json", ".yaml", ".yml"}
# Words of a language model, not of a person: any letters may occur in them.
_VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
# The begin of an absolute path, as Linux, a Mac or Windows writes it, or of a way up to somebody's home.
_ROOT = (
    r"(?<![\w./~\\])(?:(?:file:/*)?[A-Za-z]:(?=[/\\])|file:/*(?=/)|~[\w.-]*(?=[/\\])|\\\\(?=\w)|(?=/[^/\s<>]+/[^/\s])"
    r"|(?:\.\.[/\\])+(?=(?:home|Users)[/\\]))"
)
_BARE = re.compile(_ROOT + r"[^\s'\"`,;|<>()\[\]{}]+")
_QUOTED = re.compile(rf"(?<=([\"'`])){_ROOT}[^\"'`\n]+(?=\1)")
_VALUE = re.compile(rf"(?m)^(\s*(?:- +)*(?:[\w.-]+: +)?)({_ROOT}[^\n#]*[^\n#\s])")
_WHOLE = re.compile(_ROOT + r"[^\n]+")
_HOMES = {"home", "users"}
_SECRETS = {
    "a token of the Hub": r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "a key of a service": r"\b(?:sk-(?=[\w-]*\d)[\w-]{20,}|[prs]k_(?:live|test)_\w{16,}|AIza[\w-]{30,}"
    r"|xox[abprs]-[\w-]{10,})",
    "a token of a code host": r"\b(?:gh[oprsu]|github_pat|glpat)[_-]\w{16,}",
    "a key of a cloud": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a web token": r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.",
    "a password in an address": r"://[^\s/:@\"']+:[^\s/@\"']+@",
    "an authorization": r"(?i)\b(?:bearer|basic)\s+(?=[^\s\"']*\d)[A-Za-z0-9+/._~-]{16,}",
}
# A name of a secret and its value; of `token` alone only what looks like one: `eos_token` is a word.
_NAMED = re.compile(
    r"(?i)(?:pass(?:word|wd|phrase)|(?<![a-z])pwd|secret|credentials?|(?:api|access|private|account|wandb)[_-]?key|"
    r"(?:access|api|auth|hf|hub|wandb|github|bearer|session|refresh|sas)[_-]?token|"
    r"(?<![a-z_-])token(?=[\"']?\s*[:=]\s*[\"']?(?=\S*\d)[\w.~+/-]{12}))"
    r"\w*[\"']?\s*[:=]\s*[\"']?(?![\"',}\s<$*~]|null\b|none\b|true\b|false\b|os\.|\w+\()[^\s\"',}]{4,}"
)


def is_asked_for(name: str, include: Sequence[str]) -> bool:
    """Whether one of the names or patterns in `include` stands for a file, by its relative name."""
    return any(fnmatch(name, pattern) for pattern in include)


def is_inert(name: PurePosixPath) -> bool:
    """Whether nothing loads or runs a file, by its name in a repository."""
    return name.name not in _READ and (name.suffix.lower() in _INERT or name.name in _KEPT)


def clean_paths(path: Path) -> bool:
    """Shorten the absolute paths in a text file to their last name, and a home directory to nothing.

    Args:
        path: a JSON, YAML, Markdown or text file, which is written again where something is found.

    Returns:
        whether something was found.
    """
    if path.suffix in (".safetensors", ".py") or path.name in _VOCABULARY[1:]:
        return False
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:  # a picture
        return False
    if path.suffix == ".json":
        before = json.loads(text)
        keep = ("model", "added_tokens") if path.name == _VOCABULARY[0] else ()
        after = _cleaned(before, keep)
        shortened = text if after == before else json.dumps(after, indent=2, ensure_ascii=False) + "\n"
    else:
        shortened = without_paths(text, whole=path.suffix in (".yaml", ".yml"))
    if shortened != text:
        path.write_text(shortened, encoding="utf-8")
    return shortened != text


def without_paths(text: str, whole: bool = False) -> str:
    """Return a text with its absolute paths shortened to `.../NAME`.

    Args:
        text: any text.
        whole: the text is YAML, whose values may be paths with spaces.
    """
    if whole:
        text = _VALUE.sub(lambda found: found[1] + _short(found[2]), text)
    return _BARE.sub(lambda found: _short(found[0]), _QUOTED.sub(lambda found: _short(found[0]), text))


def _cleaned(value: Any, keep: tuple[str, ...] = ()) -> Any:
    if isinstance(value, dict):
        names = [_cleaned(key) for key in value]
        if len(set(names)) < len(names):  # folders told them apart
            names = [f"{name} {number}" for number, name in enumerate(names)]
        items = (item if key in keep else _cleaned(item) for key, item in value.items())
        return dict(zip(names, items, strict=True))
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if not isinstance(value, str):
        return value
    return _short(value) if _WHOLE.fullmatch(value) else without_paths(value)


def _short(path: str) -> str:
    parts = [part for part in re.split(r"[/\\]+", path) if part]
    home = len(parts) < 2 or parts[-2].lower() in _HOMES or parts[-1].startswith("~")
    return "..." if home else f".../{parts[-1]}"


def secret_of(path: Path) -> str | None:
    """Say what of a file looks like a key or a password, and where; None: nothing does.

    Of weights their metadata is read, which also must not name folders of this machine.
    """
    if path.suffix != ".safetensors":
        return find_secret(path.read_text(encoding="utf-8", errors="replace"), path.name not in _VOCABULARY)
    with safe_open(path, "pt") as file:
        text = "\n".join(f"{name}: {value}" for name, value in (file.metadata() or {}).items())
    return "a folder of this machine in its metadata" if without_paths(text) != text else find_secret(text)


def find_secret(text: str, named: bool = True) -> str | None:
    """Say what of a text looks like a key or a password, and where; None: nothing does.

    Args:
        named: also look for what only its name gives away, as `password: ...`.
    """
    kinds: dict[str, str | re.Pattern[str]] = {**_SECRETS, **({"a password or key": _NAMED} if named else {})}
    found = [(match.start(), kind) for kind, one in kinds.items() if (match := re.search(one, text))]
    if not found:
        return None
    place, kind = min(found)
    return f"{kind} in line {text.count(chr(10), 0, place) + 1}"
