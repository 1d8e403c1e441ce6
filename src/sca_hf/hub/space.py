"""The demo as a Space: a folder that the Hub can run, with the model it shows pinned by commit."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path
from string import Template

from huggingface_hub import HfApi

from ..environment import requirements
from .publish import upload


_APP = Template('''\
"""The demo of sca-hf, for $repo_id."""

from huggingface_hub import snapshot_download

from sca_hf.demo import serve


if __name__ == "__main__":
    # The page calls a model by the name of its folder.
    folder = snapshot_download("$repo_id", revision="$revision", local_dir="models/$name")
    serve([folder], host="0.0.0.0", port=7860)
''')
_CARD = Template("""\
---
title: $name
emoji: 🔲
colorFrom: indigo
colorTo: green
sdk: gradio
app_file: app.py
python_version: "3.11"
models:
- $repo_id
---

Point at anything in a picture, get its mask and a caption. The model is `$repo_id` at `$revision`.
""")


def write_space(folder: Path, repo_id: str, revision: str) -> Path:
    """Write the files of a Space.

    The package travels along as source, without the bundled model: the Space needs no release of it.

    Args:
        folder: to write, which must not exist.
        repo_id: of the model that it shows.
        revision: commit of that.
    """
    names = {"repo_id": repo_id, "revision": revision, "name": repo_id.split("/")[-1]}
    folder.mkdir(parents=True)
    (folder / "app.py").write_text(_APP.substitute(names), encoding="utf-8")
    (folder / "README.md").write_text(_CARD.substitute(names), encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(requirements("", "demo", "serve")) + "\n", encoding="utf-8")
    package = Path(str(resources.files("sca_hf")))
    shutil.copytree(package, folder / "sca_hf", ignore=shutil.ignore_patterns("__pycache__", "assets", "*.pyc"))
    return folder


def publish_space(api: HfApi, folder: Path, repo_id: str, private: bool = False) -> str:
    """Upload a Space's folder; returns its address."""
    api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True)
    upload(api, repo_id, folder, repo_type="space")
    return f"{api.endpoint}/spaces/{repo_id}"
