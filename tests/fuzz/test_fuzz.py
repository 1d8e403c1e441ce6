"""Mutations of what is valid, as long as SCA_FUZZ_SECONDS says for each target: `make fuzz`.

Whatever is changed in a folder of a model, a data set, a mask, a request or the files of a run: it is refused by an
error that is meant for people, within the budget, or read as what it is. Seeds of what was found are in test_seeds.py.
"""

import base64
import copy
import io
import json
import os
import random
import resource
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from valid_sets import MAKERS, mask, read

from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.cli import main
from sca_hf.evaluation.predictions import read_predictions
from sca_hf.files import read_json
from sca_hf.processing.masks_sca import decode_rle, encode_rle
from sca_hf.prompt_arguments import read_mask_file, read_regions_file
from sca_hf.testing import save_tiny_model, tiny_image
from sca_hf.yaml_files import read_yaml


SECONDS = float(os.environ.get("SCA_FUZZ_SECONDS", "0"))
pytestmark = [pytest.mark.fuzz, pytest.mark.skipif(not SECONDS, reason="SCA_FUZZ_SECONDS is not set: make fuzz")]
SEED = int(os.environ.get("SCA_FUZZ_SEED", "0"))
MOST_MIB, MOST_SECONDS = 300, 5
# What is said to people; anything else is a mistake of ours.
MEANT = (ValueError, OSError, RuntimeError, ImportError)
NEVER = (UnicodeError, RecursionError, NotImplementedError, json.JSONDecodeError)
ODD = [
    None,
    True,
    -1,
    0,
    1,
    2,
    0.5,
    1e308,
    float("inf"),
    float("nan"),
    10**6,
    10**9,
    2**31,
    2**63,
    10**400,
    "",
    "x",
    "1",
]
ODD += [
    "\ud800",
    "\x1b[2J",
    "../../x",
    "/etc/passwd",
    "http://127.0.0.1:9/x",
    "9" * 5000,
    "a" * 10_000,
    [],
    {},
    [[]],
    [1],
]
ODD += [{"a": 1}, [None], "évil--x.Y", [0] * 5000, {"size": [10**5, 10**5], "counts": [0, 10**10]}]
TOKENS = [
    b"\xff",
    b"\0",
    b"",
    b"9" * 5000,
    b"1e999",
    b"[" * 2000,
    b"{" * 2000,
    b'"',
    b"<",
    b"\n",
    b"\r",
    b"NaN",
    b"-1",
    b"\\",
]


def within(value, path=()):
    """All places of nested JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from within(one, (*path, key))


def mutated_json(rng, content):
    """A copy with one or two places changed, taken away, doubled or exchanged."""
    content = json.loads(json.dumps(content))
    for _ in range(rng.choice((1, 1, 1, 2))):
        places = list(within(content))
        if not places:
            return copy.deepcopy(rng.choice(ODD))
        path = rng.choice(places)
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        act = rng.random()
        if act < 0.7:
            inner[path[-1]] = copy.deepcopy(rng.choice(ODD))
        elif act < 0.8:
            del inner[path[-1]]
        elif act < 0.9 and isinstance(inner, list):
            inner.insert(path[-1], copy.deepcopy(inner[path[-1]]))
        else:
            other = rng.choice(places)
            value = content
            for key in other:
                value = value[key] if not isinstance(value, (int, float, str, type(None))) else value
            inner[path[-1]] = json.loads(json.dumps(value))
    return content


def mutated_bytes(rng, content):
    """A copy with a few bytes changed, cut, doubled or exchanged for odd ones."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        start = rng.randrange(len(content) + 1)
        end = min(len(content), start + rng.choice((0, 1, 1, 4, 50)))
        act = rng.random()
        if act < 0.4:
            content[start:end] = bytes(rng.randrange(256) for _ in range(end - start))
        elif act < 0.7:
            content[start:end] = rng.choice(TOKENS)
        elif act < 0.8:
            del content[start:]
        else:
            content[start:start] = content[start:end] * rng.choice((1, 3))
    return bytes(content)


def mutated_file(rng, path):
    """Changes a file in place: as JSON where it is that, mostly, else as bytes."""
    content = path.read_bytes()
    lines = path.suffix == ".jsonl"
    if path.suffix in (".json", ".jsonl") and rng.random() < 0.8:
        rows = [json.loads(line) for line in content.splitlines()] if lines else json.loads(content)
        rows = mutated_json(rng, rows)
        text = "\n".join(map(json.dumps, rows if isinstance(rows, list) else [rows])) if lines else json.dumps(rows)
        path.write_text(text)
    else:
        path.write_bytes(mutated_bytes(rng, content))


def run(name, case, seconds=SECONDS):
    """Runs cases until the time is over; says how many there were, and which went wrong."""
    outcomes, wrong, number, end = Counter(), [], 0, time.monotonic() + seconds
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    while time.monotonic() < end:
        number += 1
        rng = random.Random(f"{name} {SEED} {number}")
        started, error = time.process_time(), None
        try:
            case(rng)
        except Exception as caught:  # noqa: BLE001, looked at below
            error = caught
        spent, peak = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        outcomes["fine" if error is None else type(error).__name__] += 1
        odd = error is not None and (
            not isinstance(error, MEANT) or isinstance(error, NEVER) or not str(error).strip()
        )
        if odd or spent > MOST_SECONDS or peak - base > MOST_MIB:
            text = f"{type(error).__name__}: {str(error)[:300]}"
            wrong.append(f"case {number}: {text} ({spent:.1f} s, {peak - base:.0f} MiB)")
            base = max(base, peak)
        if len(wrong) > 20:
            break
    print(f"\nfuzz {name}: {number} cases, {dict(outcomes.most_common(6))}, {len(wrong)} wrong")
    assert wrong == [], "\n".join(wrong)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "saved"
    save_tiny_model(folder)
    return folder


def test_folders_of_models(saved, tmp_path):
    # The tokenizer's own file is read by a library of its own.
    files = [path.name for path in saved.iterdir() if path.suffix in (".json", ".safetensors", ".jinja")]
    files = sorted(set(files) - {"tokenizer.json"})
    folder = shutil.copytree(saved, tmp_path / "folder")

    def case(rng):
        file = rng.choice([*files, "config.json", "processor_config.json"])
        try:
            mutated_file(rng, folder / file)
            processor = ScaProcessor.from_pretrained(folder)
            model = ScaForConditionalGeneration.from_pretrained(folder)
            model.check_processor(processor)
            model.generate(**processor(tiny_image(), input_boxes=[[[2, 2, 30, 30]]]), max_new_tokens=2)
        finally:
            shutil.copyfile(saved / file, folder / file)

    run("folders", case)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_data_sets(tmp_path, monkeypatch, name):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    options = MAKERS[name](tmp_path / "set")
    files = [path for path in sorted((tmp_path / "set").rglob("*")) if path.is_file()]
    texts = [path for path in files if path.suffix != ".jpg"]
    whole = {path: path.read_bytes() for path in files}
    size = sum(map(len, whole.values()))

    def case(rng):
        path = rng.choice(texts if rng.random() < 0.9 else files)
        try:
            mutated_file(rng, path)
            skip = rng.random() < 0.5
            found, _ = read(name, options, "skip" if skip else "raise")
            assert len(json.dumps(found, default=str)) < 1000 * size + 10**6
        finally:
            for path, content in whole.items():
                path.write_bytes(content)

    run(f"records of {name}", case, SECONDS / 4)


def test_rle():
    def case(rng):
        rle = encode_rle(
            mask() if rng.random() < 0.5 else np.random.default_rng(rng.randrange(99)).random((30, 40)) > 0.5
        )
        if rng.random() < 0.3:
            rle["counts"] = np.random.default_rng(rng.randrange(99)).integers(-3, 500, 9).tolist()
        rle = mutated_json(rng, rle)
        if isinstance(rle, dict) and isinstance(rle.get("counts"), str) and rng.random() < 0.5:
            rle["counts"] = mutated_bytes(rng, rle["counts"].encode("utf-8", "replace"))
        decoded = decode_rle(rle)
        assert list(decoded.shape) == list(rle["size"]) and encode_rle(decoded)["size"] == list(rle["size"])

    run("RLE", case)


def test_files_of_prompts_and_settings(tmp_path):
    from PIL import Image

    rows = [{"box": [1, 2, 30, 20], "points": [[5, 5]], "labels": [1], "mask": encode_rle(mask())}, {"mask": "m.png"}]
    Image.fromarray(mask()).save(tmp_path / "m.png")
    np.save(tmp_path / "m.npy", mask())
    (tmp_path / "m.json").write_text(json.dumps(encode_rle(mask())))
    (tmp_path / "r.json").write_text(json.dumps({"regions": rows}))
    (tmp_path / "a.yaml").write_text("model:\n  from: sca-tiny\ntrain: {a: 1e-4, b: [1, 2]}\nnames: &x\n  - cat\n")
    row = {"id": "1", "candidates": ["a"], "references": ["a b"], "mask": encode_rle(mask()), "scores": [-0.5]}
    (tmp_path / "said.jsonl").write_text("".join(json.dumps({**row, "id": str(i)}) + "\n" for i in range(3)))
    readers = {
        "m.png": read_mask_file,
        "m.npy": read_mask_file,
        "m.json": read_mask_file,
        "r.json": read_regions_file,
        "a.yaml": read_yaml,
        "said.jsonl": lambda path: list(read_predictions(path)),
    }
    whole = {name: (tmp_path / name).read_bytes() for name in readers}

    def case(rng):
        name = rng.choice(sorted(readers))
        try:
            mutated_file(rng, tmp_path / name)
            readers[name](tmp_path / name)
            if name.endswith("json"):
                read_json(tmp_path / name)
        finally:
            (tmp_path / name).write_bytes(whole[name])

    run("prompts and settings", case)


def test_requests():
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from sca_hf.serving import Engine, Limits
    from sca_hf.serving.api import create_app

    file = io.BytesIO()
    tiny_image().save(file, "png")
    image = base64.b64encode(file.getvalue()).decode()
    regions = [{"box": [2, 2, 30, 30], "points": [[5, 5], [9, 9]], "labels": [1, 0], "name": "x"}]
    requests = {
        "/v1/caption": {"image": image, "regions": regions, "num_beams": 1, "max_new_tokens": 4},
        "/v1/anything": {"image": image, "settings": {"points_per_side": 2}},
        "/v1/segment": {"image": image, "regions": regions},
    }
    engine = Engine(["sca-tiny"], device="cpu", limits=Limits(file_bytes=1 << 20, pixels=1_000_000, regions=20))
    try:
        with TestClient(create_app(engine), raise_server_exceptions=False) as client:
            known = {path for path in requests if client.post(path, json=requests[path]).status_code != 404}
            assert "/v1/caption" in known

            def case(rng):
                path = rng.choice(sorted(known))
                body = json.dumps(mutated_json(rng, requests[path])).encode()
                if rng.random() < 0.3:
                    body = mutated_bytes(rng, body)
                answer = client.post(path, content=body, headers={"content-type": "application/json"})
                assert answer.status_code < 500, (answer.status_code, answer.text[:200], body[-300:])
                assert answer.status_code == 200 or json.loads(answer.text), answer.text
                assert "Traceback" not in answer.text and os.getcwd() not in answer.text

            run("requests", case)
    finally:
        engine.close()


def test_files_of_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    Path("pictures").mkdir()
    tiny_image(1).save("pictures/1.png")
    commands = [
        ["anything", "pictures", "--output", "out/anything", "--points-per-side", "2"],
        ["predict", "--data", "scenes:split=validation,count=2", "--output", "out/said.jsonl"],
    ]
    for command in commands:
        Path("out").mkdir(exist_ok=True)
        assert main(command) == 0
    shutil.copytree("out", "whole")
    files = [path.relative_to("whole") for path in sorted(Path("whole").rglob("*")) if path.is_file()]
    files = [path for path in files if not path.name.endswith(".lock")]

    def case(rng):
        shutil.rmtree("out")
        shutil.copytree("whole", "out")
        file = rng.choice(files)
        mutated_file(rng, Path("out") / file)
        capsys.readouterr()
        code = main(commands["anything" not in file.parts])
        said = capsys.readouterr().err
        # An error without its kind in front is meant for people.
        assert code in (0, 1, 2) and "--debug shows where" not in said and "Traceback" not in said, said[-500:]
        assert code == 0 or str(file.name) in said or "was" in said or "is" in said, said[-500:]

    run("files of runs", case)
