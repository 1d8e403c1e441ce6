"""The real huggingface_hub client against our stand-in for the Hub: what every other test of this folder relies on."""

import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


LARGE = bytes(range(256)) * 400


@pytest.fixture
def api(online):
    return HfApi(online.url, token="token-of-ann")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "made" / "deep").mkdir(parents=True)
    (tmp_path / "made" / "model.safetensors").write_bytes(LARGE)
    (tmp_path / "made" / "config.json").write_text('{"a": 1}')
    (tmp_path / "made" / "deep" / "note.txt").write_text("über")
    return tmp_path / "made"


def upload(api, name, folder, **options):
    api.create_repo(name, exist_ok=True, private=options.pop("private", None))
    return api.upload_folder(repo_id=name, folder_path=folder, **options)


def test_what_is_uploaded_is_listed_and_comes_back(api, folder, tmp_path):
    commit = upload(api, "ann/first", folder)
    files = api.list_repo_files("ann/first")
    assert sorted(files) == [".gitattributes", "config.json", "deep/note.txt", "model.safetensors"]
    entries = {entry.path: entry for entry in api.list_repo_tree("ann/first", recursive=True)}
    assert entries["model.safetensors"].lfs.size == len(LARGE) and entries["config.json"].lfs is None
    fetched = snapshot_download("ann/first", revision=commit.oid)
    assert (tmp_path / "cache") in Path(fetched).parents
    assert all(
        (Path(fetched) / p.relative_to(folder)).read_bytes() == p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file()
    )
    assert api.model_info("ann/first").sha == commit.oid
    assert [c.title for c in api.list_repo_commits("ann/first")] == [
        "Upload folder using huggingface_hub",
        "initial commit",
    ]


def test_large_files_go_up_in_parts_and_only_once(api, online, folder):
    online.part_size = 30_000
    changed = LARGE + b"in parts"
    (folder / "model.safetensors").write_bytes(changed)
    try:
        upload(api, "ann/parts", folder)
    finally:
        online.part_size = None
    parts = [path for method, path in online.requests if method == "PUT" and path.count("/") == 3]
    assert len(parts) == -(-len(changed) // 30_000)
    before = online.received
    upload(api, "ann/parts-again", folder)
    assert online.received - before < 5_000
    assert Path(hf_hub_download("ann/parts-again", "model.safetensors")).read_bytes() == changed


def test_revisions_are_commits_branches_and_tags(api, folder):
    first = upload(api, "ann/versions", folder).oid
    api.create_tag("ann/versions", tag="v1")
    api.create_branch("ann/versions", branch="trial/a")
    (folder / "config.json").write_text('{"a": 2}')
    trial = upload(api, "ann/versions", folder, revision="trial/a").oid
    refs = api.list_repo_refs("ann/versions")
    assert {b.name: b.target_commit for b in refs.branches} == {"main": first, "trial/a": trial}
    assert [t.target_commit for t in refs.tags] == [first]
    read = {
        revision: Path(hf_hub_download("ann/versions", "config.json", revision=revision)).read_text()
        for revision in ("main", "v1", "trial/a", first, trial)
    }
    assert read == {"main": '{"a": 1}', "v1": '{"a": 1}', "trial/a": '{"a": 2}', first: '{"a": 1}', trial: '{"a": 2}'}
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("ann/versions", "config.json", revision="v2")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("ann/versions", "absent.json")


def test_unchanged_folders_make_no_commit_and_deletions_do(api, folder):
    first = upload(api, "ann/same", folder).oid
    assert upload(api, "ann/same", folder).oid == first
    (folder / "model.safetensors").unlink()
    upload(api, "ann/same", folder, delete_patterns="*.safetensors")
    assert "model.safetensors" not in api.list_repo_files("ann/same")


def test_a_commit_on_what_is_no_longer_the_head_is_refused(api, folder):
    first = upload(api, "ann/race", folder).oid
    api.upload_file(repo_id="ann/race", path_in_repo="a", path_or_fileobj=b"a")
    with pytest.raises(HfHubHTTPError, match="412"):
        api.upload_file(repo_id="ann/race", path_in_repo="b", path_or_fileobj=b"b", parent_commit=first)


def test_a_broken_download_goes_on_where_it_broke(api, online, folder):
    upload(api, "ann/broken", folder)
    online.break_downloads("GET /cdn/", after=60_000)
    before = len(online.requests)
    assert Path(hf_hub_download("ann/broken", "model.safetensors")).read_bytes() == LARGE
    assert sum(path.startswith("/cdn/") and method == "GET" for method, path in online.requests[before:]) == 2


def test_private_gated_and_absent_repositories_answer_as_the_hub_does(api, online, folder):
    upload(api, "ann/secret", folder, private=True)
    upload(api, "ann/gated", folder)
    online.repository("ann/gated").gated, online.repository("ann/gated").readers = True, {"ann"}
    bob, nobody = HfApi(online.url, token="token-of-bob"), HfApi(online.url, token=False)
    for who in (bob, nobody):
        with pytest.raises(RepositoryNotFoundError):
            who.model_info("ann/secret")
        assert who.model_info("ann/gated").gated == "auto"
        with pytest.raises(GatedRepoError):
            who.hf_hub_download("ann/gated", "config.json")
        with pytest.raises(RepositoryNotFoundError):
            who.hf_hub_download("ann/never", "config.json")
    assert api.hf_hub_download("ann/gated", "config.json")


def test_a_renamed_repository_answers_to_its_old_name(api, folder):
    upload(api, "ann/old-name", folder)
    api.move_repo("ann/old-name", "ann/new-name")
    assert api.model_info("ann/old-name").id == "ann/new-name"
    assert Path(hf_hub_download("ann/old-name", "model.safetensors")).read_bytes() == LARGE


@pytest.mark.parametrize("token, status", [("token-of-a-reader", 403), ("token-of-bob", 403), ("wrong", 401)])
def test_who_may_not_write_is_told_so(online, token, status):
    with pytest.raises(HfHubHTTPError, match=str(status)):
        HfApi(online.url, token=token).create_repo("ann/not-yours")


@pytest.mark.parametrize("status", [429, 500])
def test_a_busy_hub_is_asked_again(api, online, folder, status):
    online.refuse("PUT /lfs/", status)
    (folder / "model.safetensors").write_bytes(LARGE + bytes([status % 256]))
    upload(api, f"ann/busy-{status}", folder)
    assert "model.safetensors" in api.list_repo_files(f"ann/busy-{status}")


def test_a_card_is_validated_before_anything_goes_up(api, folder):
    (folder / "README.md").write_text("---\nlicense: [1]\nmodel-index:\n- name: x\n---\n# x\n")
    with pytest.raises(ValueError, match="Invalid metadata") as error:
        upload(api, "ann/bad-card", folder)
    assert "license" in str(error.value) and "model-index" in str(error.value)
    assert api.list_repo_files("ann/bad-card") == [".gitattributes"]
    ModelCard("---\nlicense: mit\n---\n# x\n").validate()


def test_a_fresh_process_needs_no_more_than_the_endpoint(online, api, folder, tmp_path):
    upload(api, "ann/fresh", folder)
    program = "from huggingface_hub import snapshot_download as s; print(s('ann/fresh', allow_patterns='*.json'))"
    environment = {"HF_ENDPOINT": online.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and str(tmp_path / "home") in done.stdout, done.stderr
