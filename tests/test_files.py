"""Files that are complete or not there, one writer at a time, and what differs from a former run."""

import math
import multiprocessing
import subprocess
import sys

import pytest

from sca_hf.files import (
    LockedError,
    differences,
    has_lone_surrogate,
    lock_file,
    lock_path,
    replacing,
    to_json,
    write_new,
    write_whole,
)


@pytest.mark.parametrize("content", ["a\nb\u2028c\n", b"a\nb\xe2\x80\xa8c\n", ["a\n", b"b", "\u2028c\n"]])
def test_a_file_is_written_as_text_bytes_or_a_stream(content, tmp_path):
    write_whole(tmp_path / "file", content, durable=True)
    assert (tmp_path / "file").read_bytes() == "a\nb\u2028c\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_fails_half_way_leaves_the_former_file_and_nothing_else(tmp_path):
    write_whole(tmp_path / "file", "former")

    def content():
        yield "half"
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        write_whole(tmp_path / "file", content())
    with pytest.raises(KeyError), replacing(tmp_path / "file") as draft:
        draft.write_text("half")
        raise KeyError("no more")
    assert (tmp_path / "file").read_text() == "former"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_file_allows_is_heeded_and_kept(tmp_path, monkeypatch):
    write_whole(tmp_path / "file", "former")
    (tmp_path / "file").chmod(0o640)
    write_whole(tmp_path / "file", "later")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    monkeypatch.setattr("os.access", lambda *_: False)  # who runs this may be root, who may write to everything
    with pytest.raises(PermissionError, match="file is read-only"):
        write_whole(tmp_path / "file", "last")
    assert (tmp_path / "file").read_text() == "later"


def test_of_several_only_the_first_makes_a_new_file(tmp_path):
    assert write_new(tmp_path / "file", "first")
    assert not write_new(tmp_path / "file", "second")
    assert (tmp_path / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _hold(path, connection):
    lock = lock_file(path)
    connection.send("held")
    connection.recv()
    lock.release()


def test_a_lock_holds_against_other_processes_and_this_one_and_ends_with_its_process(tmp_path):
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(tmp_path / "file", there))
    process.start()
    here.recv()
    with pytest.raises(LockedError, match="file is being written by another process"):
        lock_file(tmp_path / "file")
    process.kill()
    process.join()
    lock = lock_file(tmp_path / "file")
    with pytest.raises(LockedError, match="file is being written by another process"):
        lock_file(tmp_path / "file")
    lock.release()
    lock_file(tmp_path / "file").release()
    assert {path.name for path in tmp_path.iterdir()} <= {lock_path(tmp_path / "file").name}


def test_differences_name_what_was_and_what_is():
    former = {"model": {"name": "a", "size": 1}, "seed": 0, "gone": [1]}
    present = {"model": {"name": "b", "size": 1}, "seed": 0, "new": True}
    assert differences(former, present) == [
        "model.name was 'a' and is 'b'",
        "gone was [1] and is None",
        "new was None and is True",
    ]
    assert differences(former, former) == []


def test_json_has_null_for_what_is_not_a_number_and_refuses_infinity():
    assert to_json({"a": (math.nan, 1.5), "b": "\u00e9"}, indent=None) == '{"a": [null, 1.5], "b": "\u00e9"}\n'
    with pytest.raises(ValueError):
        to_json(math.inf)


def test_half_a_character_is_seen():
    assert has_lone_surrogate("a\ud83d") and not has_lone_surrogate("a\U0001f600")


def test_torch_is_not_needed():
    code = "import importlib.util, sys; spec = importlib.util.spec_from_file_location('files', sys.argv[1]); "
    code += "module = importlib.util.module_from_spec(spec); sys.modules['files'] = module; "
    code += "spec.loader.exec_module(module); assert 'torch' not in sys.modules"
    from sca_hf import files

    subprocess.run([sys.executable, "-c", code, files.__file__], check=True)
