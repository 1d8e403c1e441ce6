"""Every long command, killed at random moments by three signals, and on a disk that becomes full.

    make kills

prints a table. Whatever happened, what stands under a final name is whole, and the same command ends with the bytes
of a run that nobody disturbed. A full disk needs the right to mount a small one; without it, files are kept short.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from sca_hf.files import file_sizes


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["tests.kill_matrix", "sca_hf.testing", "sca_hf.hub.publish", "sca_hf.hub.convert", "sca_hf.evaluation.predict"]
    + ["sca_hf.anything.folder", "sca_hf.training.recipe.run", "sca_hf.training.embedding_cache", "datasets"]
)
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
GRID = ["--points-per-side=2", "--pred-iou-thresh=0", "--stability-score-thresh=0", "--box-nms-thresh=1"]


def build_inputs(folder):
    """Pictures, a file of regions, two models, a recipe and a checkpoint of the authors."""
    from original_format import original_config, original_state_dict, write_checkpoint
    from test_recipe import TRAINING, write_regions
    from tiny_runs import records

    from sca_hf.cli import main as sca_hf
    from sca_hf.testing import save_tiny_model, tiny_model, tiny_tokenizer
    from sca_hf.training.recipe.schema import Recipe

    write_regions(folder / "regions.jsonl", records(12))
    (folder / "photos").mkdir()
    for path in folder.glob("*.png"):
        shutil.copy(path, folder / "photos" / path.name)
    for name, seed in (("model", 0), ("former", 1)):
        save_tiny_model(folder / name, seed=seed)
    model = tiny_model()
    write_checkpoint(folder / "theirs", original_config(model), original_state_dict(model))
    tiny_tokenizer().save_pretrained(folder / "theirs")
    values = {
        "model": {"from": str(folder / "model")},
        "data": {"train": {"format": "jsonl", "path": str(folder / "regions.jsonl")}},
        "training": {**TRAINING, "max_steps": 12, "save_steps": 2, "save_total_limit": 2, "report_to": "none"},
        "output": "unsaid",
    }
    (folder / "boxes.json").write_text(
        json.dumps({path.name: [{"box": [5, 5, 40, 30]}] for path in folder.glob("*.png")})
    )
    (folder / "recipe.yaml").write_text(Recipe.from_mapping(values).to_yaml())
    for name in ("propose", "judge"):
        assert sca_hf(commands(folder, folder, "")[f"self-train {name}"]) == 0, name


def commands(inputs, place, repository):
    """What is run, by its name."""
    data = f"jsonl:path={inputs}/regions.jsonl"
    tiny = ["--model", f"{inputs}/model", "--device", "cpu", "--quiet"]
    masks = ["--masks", "all"]
    return {
        "train": ["train", f"{inputs}/recipe.yaml", f"--output={place}/run", "--quiet"],
        "predict": ["predict", "--data", data, "--output", f"{place}/said.jsonl", "--batch-size", "1", *masks, *tiny],
        "predict, Parquet": ["predict", "--data", data, "--output", f"{place}/said.parquet", *masks, *tiny],
        "anything": ["anything", f"{inputs}/photos", "--output", f"{place}/out", "--overlays", "--write", "labelme"]
        + [*GRID, *tiny],
        "self-train propose": ["self-train", "propose", f"{inputs}/photos", "--boxes", f"{inputs}/boxes.json"]
        + ["--views", "box", "flip", "--output", f"{place}/proposals", *tiny],
        "self-train judge": ["self-train", "judge", f"{inputs}/proposals", "--output", f"{place}/judged", *tiny]
        + ["--judges", "score", "agreement", "listener", "--tiles", "6"],
        "self-train learn": ["self-train", "learn", f"{inputs}/recipe.yaml", f"--output={place}/run", "--quiet"]
        + ["--manifest", f"{inputs}/judged/manifest.parquet"],
        "cache": ["cache", f"{place}/cache"],
        "convert": ["convert", f"{inputs}/theirs", f"{place}/model", "--quiet"],
        "publish": ["publish", f"{inputs}/model", repository, "--quiet"],
    }


def run_alone(argv, place, url, room):
    """One command in a process of its own; what it says is in `said.txt` beside its folder.

    room: how long a file may become, in place of a full disk.
    """
    said = os.open(f"{place}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1), os.dup2(said, 2)
    import datasets
    import torch

    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = Path(f"{place}-datasets")
    tempfile.tempdir = str(place)
    if room is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    if argv[0] == "cache":
        from tests.training.killed_runs import fill_cache

        fill_cache(Path(argv[1]), 60)
        return
    if argv[0] == "publish":
        from tests.hub.publishing import go_online

        go_online(url)
        os.environ |= {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    from sca_hf.__main__ import main

    sys.argv = ["sca-hf", *argv]
    sys.exit(main())


def result(place, hub, repository):
    """Every file that stands under its final name, but for journals and what else says how far a run is."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        parts = name.split("/")
        passing = any(part.startswith((".", "_tmp-")) or part in ("journal", "runs") for part in parts)
        passing |= name.endswith((".run.json", "metrics.json", "trainer_state.json", "run.json", "README.md"))
        passing |= ".part-" in name or (len(parts) > 1 and parts[1].startswith("checkpoint-"))
        if path.is_file() and not passing and not parts[0].startswith("tmp"):
            found[name] = path.read_bytes().replace(bytes(place), b"PLACE")
    if ("model", repository) in hub.store.repositories:
        files = hub.repository(repository).resolve("main").files
        found |= {f"hub/{name}": hub.store.content(file) for name, file in files.items()}
        found.pop("hub/README.md", None)
        if set(found) == {"hub/.gitattributes"}:  # made, and nothing in it
            found.clear()
    return found


def halves(place, hub, repository, wholes):
    """What stands under a final name and is neither the whole result nor what was there before."""
    from sca_hf.training.checkpoint.integrity import incomplete_reason

    found = result(place, hub, repository)
    # Lines are appended to this one: it is its own journal, and `said.jsonl.run.json` says that it is not complete.
    lines = found.pop("said.jsonl", b"")
    bad = [] if any(whole.get("said.jsonl", b"").startswith(lines) for whole in wholes) else ["said.jsonl"]
    bad += [str(path) for path in place.glob("run/checkpoint-*") if incomplete_reason(path)]
    for folder in {name.split("/")[0] for name in found if name.startswith(("model/", "hub/"))}:
        part = {n: d for n, d in found.items() if n.startswith(f"{folder}/")}
        known = [{n: d for n, d in whole.items() if n.startswith(f"{folder}/")} for whole in wholes]
        bad += [] if part in known else [f"{folder}: a mixture"]
        found = {name: data for name, data in found.items() if name not in part}
    return bad + [n for n, data in found.items() if all(whole.get(n) != data for whole in wholes)]


class Matrix:
    """The tries of one command.

    Args:
        name: of `commands`.
        inputs: of [`build_inputs`].
        folder: for what they write.
        hub: a running Hub.
    """

    def __init__(self, name, inputs, folder, hub):
        self.name, self.inputs, self.folder, self.hub = name, inputs, folder, hub
        self.random, self.tries = random.Random(name), 0
        place, repository = self.new_place()
        self.former = result(place, hub, repository)
        warm = CONTEXT.Process(target=int)
        warm.start(), warm.join()
        began = time.monotonic()
        assert self.finish(place, repository) == 0, Path(f"{place}.txt").read_text()
        self.seconds = time.monotonic() - began
        self.whole = result(place, hub, repository)
        assert self.whole and self.whole != self.former, name
        # What is published is put together in a temporary folder, of which nothing stays.
        sizes = file_sizes(inputs / "model" if name == "publish" else place)
        self.bytes, self.longest = sum(sizes.values()), max(sizes.values())

    def new_place(self, mount=None):
        self.tries += 1
        short = self.name.replace(",", "").replace(" ", "-").lower()
        place = self.folder / f"{short}-{self.tries}"
        place.mkdir()
        if mount is not None:
            mount(place)
        if self.name == "convert":
            shutil.copytree(self.inputs / "former", place / "model")
        return place, f"ann/{short}-{self.tries}"

    def start(self, place, repository, room=None):
        argv = commands(self.inputs, place, repository)[self.name]
        process = CONTEXT.Process(target=run_alone, args=(argv, place, self.hub.url, room))
        process.start()
        return process

    def finish(self, place, repository, room=None):
        process = self.start(place, repository, room)
        process.join(900)
        return process.exitcode

    def check(self, place, repository):
        """Nothing by halves, and the same command ends with the same."""
        bad = halves(place, self.hub, repository, [self.whole, self.former])
        assert not bad, f"{self.name}: {bad}"
        code = self.finish(place, repository)
        assert code == 0, f"{self.name}: {code}, {Path(f'{place}.txt').read_text()[-2000:]}"
        now = result(place, self.hub, repository)
        differing = [name for name in {*now, *self.whole} if now.get(name) != self.whole.get(name)]
        assert not differing, f"{self.name}: {differing}"

    def kill(self, number):
        """Sends a signal at a random moment, then resumes; says whether the run was still going."""
        place, repository = self.new_place()
        process = self.start(place, repository)
        process.join(self.random.uniform(0, 1.05 * self.seconds))
        if going := process.is_alive():
            os.kill(process.pid, number)
            process.join(60)
            assert not process.is_alive(), f"{self.name} ignores signal {number}"
            assert process.exitcode != 0 or self.name == "cache" or result(place, self.hub, repository) == self.whole
        self.check(place, repository)
        shutil.rmtree(place)
        return going

    def fill(self, share):
        """Runs with room for a share of what it takes, then with enough; says how it was refused."""
        there = sum(map(len, self.former.values()))
        with small_disk(there + int(share * self.bytes)) as (mount, grow):
            place, repository = self.new_place(mount)
            room = int(share * self.longest) if mount is None else None
            code = self.finish(place, repository, room)
            said = Path(f"{place}.txt").read_text()
            if code:
                assert "disk is full" in said or "No space left" in said or "File too large" in said, said[-2000:]
            grow(place)
            self.check(place, repository)
        shutil.rmtree(place, ignore_errors=True)
        return code != 0


@contextmanager
def small_disk(size):
    """Gives what mounts a disk of so many bytes on a folder, or None without the right to, and what makes it large."""
    mounted = []

    def call(*arguments):
        return shutil.which("mount") and subprocess.run(["mount", *arguments], capture_output=True).returncode == 0

    def mount(place):
        assert call("-t", "tmpfs", "-o", f"size={size + 8192}", "tmpfs", str(place))
        mounted.append(place)

    def grow(place):
        if mounted:
            assert call("-o", "remount,size=500m", str(place))

    with tempfile.TemporaryDirectory() as trial:
        may = call("-t", "tmpfs", "-o", "size=1m", "tmpfs", trial)
        if may:
            subprocess.run(["umount", trial], check=True)
    try:
        yield (mount if may else None), grow
    finally:
        for place in mounted:
            subprocess.run(["umount", str(place)], check=True)


def table(folder, times, full, names=None):
    """Runs the matrix; yields a line of its table for each command."""
    from hub_server import running_hub

    inputs = folder / "inputs"
    inputs.mkdir()
    build_inputs(inputs)
    with running_hub() as hub:
        for name in names or commands("", "", ""):
            began = time.monotonic()
            matrix = Matrix(name, inputs, folder, hub)
            found: Counter[tuple[str, bool]] = Counter()
            for kind in SIGNALS:
                found.update((kind, matrix.kill(SIGNALS[kind])) for _ in range(times))
            found.update(("full", matrix.fill((moment + 0.5) / full)) for moment in range(full))
            cells = [f"{found[kind, True]} of {times} killed while running" for kind in SIGNALS]
            cells += [f"{found['full', True]} of {full} refused for want of room"]
            yield (
                f"{name}: {', '.join(map(' '.join, zip(SIGNALS, cells, strict=False)))}, {cells[-1]}; all ended alike "
                + (f"({time.monotonic() - began:.0f} s)")
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="random moments for each signal")
    parser.add_argument("--full", type=int, default=5, help="moments at which the disk is full")
    parser.add_argument("--only", nargs="+", help="some of the commands")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for line in table(Path(folder), options.times, options.full, options.only):
            print(line, flush=True)


if __name__ == "__main__":
    main()
