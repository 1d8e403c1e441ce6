"""The log of a run: incomplete lines are cut, other settings named, parts have one writer and are read in order."""

import json

import pytest

from sca_hf.files import LockedError
from sca_hf.run_log import RunLog, RunLogError, RunMismatchError, torchrun_rank


def head(line):
    row = json.loads(line)
    return row["key"], row.get("failed", False)


def open_log(folder, rank=0, settings=None, **options):
    part = None if rank is None else folder / f"part-{rank}.jsonl"
    settings = {"model": "m", "nested": {"seed": 0}} if settings is None else settings
    return RunLog(folder / "out", folder / "run.json", settings, part, "part-*.jsonl", head, **options)


def append(folder, rank, *keys, **more):
    with open_log(folder, rank) as log:
        log.append(json.dumps({"key": key, "rank": rank, **more}) for key in keys)


def test_an_incomplete_last_line_is_dropped_by_its_writer_and_seen_by_nobody(tmp_path):
    append(tmp_path, 0, "a", "b")
    part = tmp_path / "part-0.jsonl"
    whole = part.read_bytes()
    for size in range(len(whole)):
        part.write_bytes(whole[:size])
        complete = whole[:size].count(b"\n")
        assert list(open_log(tmp_path, None).lines()) == ["a", "b"][:complete]
        assert part.stat().st_size == size, "who only reads changes nothing"
        with open_log(tmp_path) as log:
            assert [line.key for line in log.own] == ["a", "b"][:complete]
        assert part.read_bytes() == whole[:size][: whole[:size].rfind(b"\n") + 1]


def test_a_long_incomplete_line_is_dropped_too(tmp_path):
    append(tmp_path, 0, "a")
    part = tmp_path / "part-0.jsonl"
    whole = part.read_bytes()
    part.write_bytes(whole + b"x" * 300_000)
    append(tmp_path, 0, "b")
    assert part.read_bytes().startswith(whole + b'{"key": "b"')


def test_a_damaged_line_is_named(tmp_path):
    append(tmp_path, 0, "a")
    with (tmp_path / "part-0.jsonl").open("a") as file:
        file.write("not JSON\n")
    with pytest.raises(RunLogError, match=r"part-0.jsonl, line 2 is damaged"), open_log(tmp_path):
        pass
    with pytest.raises(RunLogError, match=r"part-0.jsonl, line 2 is damaged"):
        open_log(tmp_path, None).lines()
    with pytest.raises(RunLogError, match="line 2"), open_log(tmp_path):
        pass  # and the part has been given up again


def test_other_settings_are_refused_by_name_unless_nothing_was_done(tmp_path):
    open_log(tmp_path, None, settings={"model": "x"})
    append(tmp_path, 0)
    append(tmp_path, 0, "a")
    with pytest.raises(
        RunMismatchError, match=r"out belongs to .*: model was 'm' and is 'n'; nested.seed was 0 and is"
    ):
        open_log(tmp_path, None, settings={"model": "n", "nested": {"seed": 1}})
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["model"] == "m"


def test_notes_are_those_of_the_beginning_and_updates_stay(tmp_path):
    open_log(tmp_path, None, notes={"began": 1}).update(complete=True)
    state = open_log(tmp_path, None, notes={"began": 2}).state
    assert state["began"] == 1 and state["complete"]


def test_a_part_has_one_writer(tmp_path):
    with open_log(tmp_path, 0):
        with (
            pytest.raises(LockedError, match=r"part-0.jsonl is being written by another process"),
            open_log(tmp_path, 0),
        ):
            pass
        append(tmp_path, 1, "b")
    append(tmp_path, 0, "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part-0.jsonl", "part-1.jsonl", "run.json"]


def test_parts_are_merged_in_the_order_asked_for(tmp_path):
    append(tmp_path, 0, "a", "c", "e")
    append(tmp_path, 1, "b", "d")
    log = open_log(tmp_path, None)
    lines = log.lines()
    entries = list(log.entries(lines[key] for key in "edcba"))
    assert [(entry["key"], entry["rank"]) for entry in entries] == [("e", 0), ("d", 1), ("c", 0), ("b", 1), ("a", 0)]


def test_later_lines_replace_earlier_ones_unless_told_otherwise(tmp_path):
    append(tmp_path, 0, "a", number=1)
    append(tmp_path, 1, "a", number=2, failed=True)
    for replaces, number in ((None, 2), (lambda former, new: former or not new, 1)):
        log = open_log(tmp_path, None, **({} if replaces is None else {"replaces": replaces}))
        assert [entry["number"] for entry in log.entries(log.lines().values())] == [number]


def test_cutting_drops_what_follows(tmp_path):
    append(tmp_path, 0, "a", "b", "c")
    with open_log(tmp_path) as log:
        log.cut(1)
        log.append([json.dumps({"key": "d"})])
    assert list(open_log(tmp_path, None).lines()) == ["a", "d"]
    with open_log(tmp_path) as log:
        log.cut(0)
    assert not open_log(tmp_path, None).lines()


def test_a_log_that_is_not_entered_takes_nothing(tmp_path):
    with pytest.raises(ValueError, match="enter the log"):
        open_log(tmp_path).append(["{}"])
    with pytest.raises(ValueError, match="opened for reading"), open_log(tmp_path, None):
        pass


def test_ranks_are_those_of_torchrun(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert torchrun_rank() == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert torchrun_rank() == (2, 4)
