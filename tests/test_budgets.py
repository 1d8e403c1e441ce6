"""What a few bytes may cost: each is refused within 300 MiB and 5 seconds of one core, or read as it should be.

Each case runs in a process of its own, whose memory is measured.
"""

import base64
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import time
import zipfile
from io import BytesIO

import pytest
import torch
from PIL import Image

from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.data.loading import RecordSource
from sca_hf.data.read_report import ReadReport
from sca_hf.data.region import load_names
from sca_hf.hub.convert import read_state_dict
from sca_hf.processing.masks_sca import read_mask
from sca_hf.processing.region_prompts_sca import read_regions
from sca_hf.prompt_arguments import read_mask_file
from sca_hf.testing import save_tiny_model, tiny_config, tiny_tokenizer
from sca_hf.yaml_files import parse_yaml


MOST_MIB, MOST_SECONDS = 300, 5
BOMB = {"size": [13_000, 13_000], "counts": [0, 169_000_000]}
HUGE = {"size": [32_768, 32_768], "counts": [0, 1 << 30]}
LONG_RLE = {"size": [30, 40], "counts": "0" * 30_000_000}


def measured(call):
    """What a call ends with in a process of its own, MiB and seconds: None, or its error."""
    here, there = multiprocessing.get_context("fork").Pipe(duplex=False)

    def run():
        before, started, error = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time(), None
        try:
            call()
        except BaseException as caught:  # noqa: BLE001, told to the parent
            error = caught
        said = None if error is None else (type(error).__name__, str(error)[:2000])
        spent = time.process_time() - started
        there.send((said, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, spent))
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(60) else (None, float("inf"), float("inf"))
    except EOFError:
        raise AssertionError("the process died") from None
    finally:
        process.kill()
        process.join()


def refused(call, words=""):
    """Asserts that a call is refused in words and within the budget."""
    said, mib, seconds = measured(call)
    assert said is not None and said[0] not in ("MemoryError", "RecursionError", "KeyboardInterrupt"), said
    assert words in said[1] and said[1], said
    assert mib <= MOST_MIB and seconds <= MOST_SECONDS, (mib, seconds, said)


def read(format, on_error="raise", **options):
    return list(RecordSource(format, options, on_error, keep_empty=True).records(ReadReport()))


def picture(folder):
    Image.new("RGB", (40, 30)).save(folder / "a.png")


def coco(folder, **annotation):
    picture(folder)
    rows = {"id": 1, "image_id": 1, "category_id": 1, **annotation}
    images = [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}]
    content = {"images": images, "annotations": [rows], "categories": [{"id": 1, "name": "cat"}]}
    (folder / "a.json").write_text(json.dumps(content))
    return lambda: read("coco", annotations=folder / "a.json")


def refer(folder, refs, segmentation=None):
    coco(folder, bbox=[1, 1, 9, 9], segmentation=segmentation)
    (folder / "a.json").rename(folder / "instances.json")
    (folder / "refs(unc).p").write_bytes(refs if isinstance(refs, bytes) else pickle.dumps(refs, 2))
    return lambda: read("refcoco", root=folder, split_by="unc", split="train", images=folder)


REF = {"ref_id": 1, "ann_id": 1, "image_id": 1, "category_id": 1, "split": "train", "sentences": [{"sent": "a"}]}


def jsonl(folder, **region):
    picture(folder)
    row = {"image": "a.png", "regions": [{"box": [1, 1, 9, 9], "captions": ["a"], **region}]}
    (folder / "a.jsonl").write_text(json.dumps(row))
    return lambda: read("jsonl", path=folder / "a.jsonl")


def labelme(folder):
    picture(folder)
    file = BytesIO()
    Image.new("1", (13_000, 13_000)).save(file, "png")
    shape = {"label": "a", "shape_type": "mask", "points": [[1, 1], [9, 9]]}
    shape["mask"] = base64.b64encode(file.getvalue()).decode()
    (folder / "a.json").write_text(json.dumps({"imagePath": "a.png", "shapes": [shape]}))
    return lambda: read("labelme", root=folder)


def parquet(folder, text, rows, repeats=1, compression="zstd"):
    import pyarrow
    from pyarrow import parquet

    picture(folder)
    count = rows * repeats
    words = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, pyarrow.int32()), pyarrow.array([text]))
    regions = pyarrow.StructArray.from_arrays([words], ["captions"])
    lists = pyarrow.ListArray.from_arrays(pyarrow.array(range(0, count + 1, repeats), pyarrow.int32()), regions)
    columns = {
        "image": ["a.png"] * rows,
        "regions": lists,
        "text": words[:rows],
        "image_id": list(map(str, range(rows))),
    }
    path = folder / "a.parquet"
    parquet.write_table(pyarrow.table(columns), path, compression=compression, dictionary_pagesize_limit=1 << 30)
    return path


def read_parquet(*arguments):
    path = parquet(*arguments)
    return lambda: read("parquet", path=path)


def read_hub(*arguments):
    path, columns = str(parquet(*arguments)), {"image": "image", "captions": "text"}
    return lambda: read("hub", path="parquet", data_files=path, columns=columns)


def named(folder):
    (folder / "n.yaml").write_text("a: &a x\nb: *a\n")
    return lambda: load_names(folder / "n.yaml")


def shared_tuples(depth):
    value = ("train",)
    for _ in range(depth):
        value = (value, value)
    return [{**REF, "sentences": value}]


def endless():
    value = [dict(REF)]
    value[0]["sentences"] = value
    return value


ALIASES = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijklm", "bcdefghijklmn", strict=True)
)


def yolo(folder, text):
    picture(folder)
    (folder / "data.yaml").write_text(text)
    return lambda: read("yolo", root=folder)


def archive(folder, method=zipfile.ZIP_DEFLATED):
    torch.save({"a": torch.zeros(200_000_000, dtype=torch.uint8)}, folder / "plain.bin")
    with (
        zipfile.ZipFile(folder / "plain.bin") as plain,
        zipfile.ZipFile(folder / "pytorch_model.bin", "w", method) as out,
    ):
        for entry in plain.infolist():
            out.writestr(entry.filename, plain.read(entry))
    (folder / "plain.bin").unlink()
    return lambda: read_state_dict(folder)


def views(folder):
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, folder / "pytorch_model.bin")
    return lambda: read_state_dict(folder)


def claiming_array(folder):
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000), }".ljust(117) + "\n"
    (folder / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0")
    return lambda: read_mask_file(folder / "a.npy")


def request(mask):
    return lambda folder: lambda: read_regions([{"mask": mask}], (30, 40))


def prompts(mask):
    processor = ScaProcessor.from_config(tiny_config(), tiny_tokenizer())
    return lambda folder: lambda: processor(Image.new("RGB", (40, 30)), input_masks=[[mask]])


CASES = {
    "an RLE of a data set": (lambda f: coco(f, bbox=[1, 1, 9, 9], segmentation=BOMB), "is of size [13000, 13000]"),
    "an RLE in place of a box": (lambda f: coco(f, segmentation=BOMB), "is of size [13000, 13000]"),
    "long counts": (lambda f: coco(f, segmentation=LONG_RLE), "more than a mask of its size can need"),
    "an RLE of refer's": (lambda f: refer(f, [REF], BOMB), "is of size [13000, 13000]"),
    "RLEs of refer's": (lambda f: refer(f, [REF], [BOMB]), "is of size [13000, 13000]"),
    "an RLE in JSON lines": (lambda f: jsonl(f, mask=BOMB), "is of size [13000, 13000]"),
    "an RLE in a request": (request(BOMB), "has the size [13000, 13000]"),
    "long counts in a request": (request(LONG_RLE), "more than a mask of its size can need"),
    "an RLE without a picture": (lambda f: lambda: read_mask(HUGE), "at most 178956970 pixels"),
    "an RLE as prompt": (prompts(HUGE), "at most 178956970 pixels"),
    "an RLE as prompt, of the shape": (prompts({"size": [9000, 9000], "counts": [0, 81_000_000]}), "9000 x 9000"),
    "a picture as mask": (labelme, "its mask of 13000 x 13000 pixels does not fill"),
    "a text behind a dictionary": (lambda f: read_parquet(f, "a" * (64 << 20), 64), "unfold"),
    "a text in each of many regions": (
        lambda f: read_parquet(f, os.urandom(1 << 20).hex(), 3, 1000, "none"),
        "unfold to",
    ),
    "a text behind a dictionary, by datasets": (lambda f: read_hub(f, os.urandom(3 << 19).hex(), 500), "unfold to"),
    "values that share their parts": (lambda f: refer(f, shared_tuples(60)), "contain each other"),
    "values that contain themselves": (lambda f: refer(f, endless()), "contain each other"),
    "tuples without end": (lambda f: refer(f, b"\x80\x02}" + b")" + b"\x85" * 2_000_000 + b"K\x01s."), "tuples"),
    "parts of high numbers": (lambda f: refer(f, b"\x80\x02]r\xff\xff\xff\x1f."), "numbers its parts beyond"),
    "lists without end": (lambda f: refer(f, b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."), "nested too"),
    "aliases": (lambda f: lambda: parse_yaml(ALIASES), "an alias (*a) is not read"),
    "aliases in data.yaml": (lambda f: yolo(f, ALIASES), "an alias (*a) is not read"),
    "YAML without end": (lambda f: yolo(f, "names: " + "[" * 20_000), "nested too deeply"),
    "aliases in names": (named, "an alias"),
    "weights that unpack": (archive, "torch compresses no weights"),
    "weights that are views": (views, "has more values than the file holds"),
    "an array that claims": (claiming_array, "is not an array of numbers, or cut short"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_few_bytes_cost_little(tmp_path, monkeypatch, name):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    make, words = CASES[name]
    refused(make(tmp_path), words)


def test_a_pickle_with_tuples_in_a_checkpoint_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02}" + b")" + b"\x85" * 2_000_000 + b"K\x01s.")
    refused(lambda: read_state_dict(tmp_path), "tuples")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_tiny_model(folder)
    return folder


def whole_numbers(value, path=()):
    """Where the whole numbers of nested JSON stand."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        if isinstance(one, int) and not isinstance(one, bool):
            yield (*path, key)
        yield from whole_numbers(one, (*path, key))


MORE = {"num_labels": 2, "sam_config": {"num_labels": 2}, "text_config": {"num_labels": 2}}


def load(folder):
    ScaForConditionalGeneration.from_pretrained(folder).check_processor(ScaProcessor.from_pretrained(folder))


def len_of(value):
    return f"{float(min(value, 10**99)):g}" if isinstance(value, int) else value


@pytest.mark.slow
@pytest.mark.parametrize("value", [10**6, 10**9, -5, 10**400], ids=len_of)
@pytest.mark.parametrize("file", ["config.json", "processor_config.json", "generation_config.json"])
def test_every_whole_number_of_a_configuration_is_bounded(saved, tmp_path, file, value):
    """By a rule, not by name: each is changed, and the model is refused or loads within the budget."""
    content = json.loads((saved / file).read_text())
    if file == "config.json":
        for part, fields in MORE.items():
            content[part] = content[part] | fields if isinstance(fields, dict) else fields
    shutil.copytree(saved, tmp_path / "changed")
    places = list(whole_numbers(content))
    assert len(places) > (1 if file == "generation_config.json" else 5)
    dear = {}
    for place in places:
        changed = json.loads(json.dumps(content))
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        (tmp_path / "changed" / file).write_text(json.dumps(changed))
        said, mib, seconds = measured(lambda: load(tmp_path / "changed"))
        said = said and (said[0], said[1][:200])
        odd = said is not None and said[0] not in ("ValueError", "OSError", "RuntimeError", "TypeError")
        named = not said or any(word in said[1] for word in (*map(str, place), "format", "not fit", "parameters"))
        if odd or mib > MOST_MIB or seconds > MOST_SECONDS or not named:
            dear[place] = (said, mib, seconds)
    assert dear == {}
