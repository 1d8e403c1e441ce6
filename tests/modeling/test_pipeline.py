import io
import json
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from sca_hf import region_captioning_pipeline
from sca_hf.processing.batch_sca import ScaBatch
from sca_hf.testing import tiny_image, tiny_tokenizer


BOXES = [[[3, 3, 40, 40], [20, 10, 70, 50]], [[1, 1, 30, 30]], [[2, 2, 60, 20]]]
IMAGES = [tiny_image(seed, (80 - 10 * seed, 60)) for seed in range(3)]
MASK = np.zeros((60, 60), dtype=bool)
MASK[10:40, 20:50] = True
# Each with prompts of its own, nested as one image alone may nest them.
ITEMS = [
    {"image": IMAGES[0], "input_boxes": BOXES[0]},
    {"image": IMAGES[1], "input_points": [[[20, 30], [40, 40]], [[9, 9]]], "input_labels": [[1, 0], [1]]},
    {"image": IMAGES[2], "input_masks": MASK, "task": "recognition"},
    {"image": IMAGES[0]},
    {"image": IMAGES[1], "input_boxes": []},
    {"images": IMAGES[2], "input_boxes": [5, 5, 50, 50], "input_points": [[[30, 20]]], "input_labels": None},
    {"image": IMAGES[0], "input_boxes": np.array([[1.0, 1, 30, 30], [2, 2, 60, 20], [9, 9, 33, 44]])},
]


@pytest.fixture
def repository(model, processor, tmp_path):
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def describe(repository):
    return pipeline("region-captioning", model=repository, trust_remote_code=True)


def test_records_are_those_of_processor_and_model(describe, repository):
    model, processor = AutoModel.from_pretrained(repository), AutoProcessor.from_pretrained(repository)
    inputs = processor(tiny_image(), input_boxes=BOXES[0], return_tensors="pt")
    sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
    expected = processor.post_process_regions(model.generate(**inputs, num_beams=2), *sizes)[0]

    records = describe(tiny_image(), input_boxes=BOXES[0], num_beams=2)

    assert len(records) == 2 and records[0].keys() == {"caption", "score", "confidence", "mask", "iou", "box"}
    assert [record["caption"] for record in records] == [record["caption"] for record in expected]
    assert all(np.array_equal(ours["mask"], theirs["mask"]) for ours, theirs in zip(records, expected, strict=True))
    assert records[0]["mask"].shape == (60, 80)


def test_several_images_of_mixed_prompts_equal_each_alone(describe):
    images = [tiny_image(seed, (80 - 10 * seed, 60)) for seed in range(3)]
    mask = np.zeros((60, 60), dtype=bool)
    mask[10:40, 20:50] = True
    prompts = {
        "input_boxes": [BOXES[0], [[1, 1, 30, 30], None], [None]],
        "input_points": [None, [None, [[20, 30], [40, 40]]], [None]],
        "input_labels": [None, [None, [1, 0]], [None]],
        "input_masks": [None, None, [mask]],
    }
    together = describe(images, batch_size=2, **prompts)
    assert [len(records) for records in together] == [2, 2, 1]
    for index, image in enumerate(images):
        own = {name: value[index] for name, value in prompts.items() if value[index] is not None}
        alone = describe(image, **own)
        assert [record["caption"] for record in alone] == [record["caption"] for record in together[index]]


def test_images_come_as_files_and_whole(describe, tmp_path):
    tiny_image().save(tmp_path / "image.png")
    (from_file,) = describe(str(tmp_path / "image.png"))
    (from_memory,) = describe(tiny_image())
    assert from_file["caption"] == from_memory["caption"]
    assert describe([tiny_image()])[0][0]["caption"] == from_memory["caption"]


def test_generation_and_task_are_set_per_call_or_at_once(describe, repository):
    short = describe(tiny_image(), max_new_tokens=2)[0]["caption"]
    assert describe(tiny_image(), generate_kwargs={"max_new_tokens": 2})[0]["caption"] == short
    set_up = pipeline("region-captioning", model=repository, trust_remote_code=True, max_new_tokens=2)
    assert set_up(tiny_image())[0]["caption"] == short != set_up(tiny_image(), task="recognition")[0]["caption"]
    without_mask = describe(tiny_image(), output_masks=False)[0]
    assert without_mask["mask"] is None and without_mask["caption"]


def test_a_pipeline_saves_what_it_needs(describe, tmp_path):
    describe.save_pretrained(tmp_path / "again")
    again = pipeline("region-captioning", model=str(tmp_path / "again"), trust_remote_code=True)
    assert again(tiny_image())[0]["caption"] == describe(tiny_image())[0]["caption"]


def captions(records):
    return [[record["caption"] for record in image] for image in records]


def rows():
    features = Features({"image": Image()})
    return Dataset.from_dict({"image": IMAGES}, features).add_column("label", [1, 2, 3])


def png(image):
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize(
    "several",
    [
        lambda: list(IMAGES),
        lambda: tuple(IMAGES),
        lambda: [[image] for image in IMAGES],
        lambda: rows()["image"],
        lambda: rows().to_iterable_dataset()["image"],
        lambda: KeyDataset(rows(), "image"),
        lambda: rows().select_columns("image"),
        lambda: rows().cast_column("image", Image(decode=False))["image"],
        lambda: (image for image in IMAGES),
        lambda: iter(IMAGES),
        lambda: map(png, IMAGES),
        lambda: dict(enumerate(IMAGES)).values(),
        lambda: np.array([png(image) for image in IMAGES], dtype=object),
        lambda: [{"bytes": png(image), "path": None} for image in IMAGES],
        lambda: [{"image": image} for image in IMAGES],
        lambda: [torch.tensor(np.asarray(image)) for image in IMAGES],
    ],
)
def test_several_images_come_in_every_form_that_the_library_knows(several, describe):
    expected = [[record["caption"] for record in describe(image)] for image in IMAGES]
    assert captions(describe(several())) == captions(describe(several(), batch_size=2)) == expected
    answer = describe(several())
    assert isinstance(answer, list) == isinstance(several(), (list, tuple, np.ndarray, type(rows()["image"])))


def test_an_array_of_four_axes_is_a_batch(describe):
    arrays = np.stack([np.asarray(tiny_image(seed)) for seed in range(3)])
    expected = [[record["caption"] for record in describe(array)] for array in arrays]
    for batch in (arrays, torch.from_numpy(arrays).permute(0, 3, 1, 2), list(arrays)):
        assert captions(describe(batch)) == expected
    boxes = np.array([[[3, 3, 40, 40]], [[1, 1, 30, 30]], [[2, 2, 60, 20]]])
    assert captions(describe(arrays, input_boxes=boxes)) == captions(
        describe([{"image": array, "input_boxes": own} for array, own in zip(arrays, boxes, strict=True)])
    )


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_stream_brings_its_own_prompts_and_gives_what_each_gives_alone(batch_size, describe):
    alone = [describe(item, num_beams=2) for item in ITEMS]
    assert [len(records) for records in alone] == [2, 2, 1, 1, 0, 1, 3]
    together = list(describe((item for item in ITEMS), batch_size=batch_size, num_beams=2))
    assert captions(together) == captions(alone)
    for ours, theirs in zip(chain(*together), chain(*alone), strict=True):
        assert ours["mask"].shape == theirs["mask"].shape and (ours["mask"] != theirs["mask"]).mean() < 1e-3
        assert abs(ours["score"] - theirs["score"]) < 1e-5
    assert captions([alone[2]]) != captions([describe(ITEMS[2] | {"task": "caption"}, num_beams=2)])


def test_a_stream_is_read_a_batch_at_a_time_and_nothing_of_it_is_kept(describe):
    read = []

    def stream():
        for index in range(10**9):
            read.append(index)
            yield {"image": IMAGES[index % 3], "input_boxes": BOXES[index % 3]}

    records = describe(stream(), batch_size=3)
    assert not read
    for count in range(1, 8):
        assert next(records)
        assert len(read) == 3 * -(-count // 3)


def test_workers_prepare_what_can_be_read_by_number(describe, caplog):
    expected = captions(describe(IMAGES))
    assert captions(describe(KeyDataset(rows(), "image"), num_workers=2, batch_size=1)) == expected
    assert captions(describe((image for image in IMAGES), num_workers=2)) == expected
    assert "num_workers is set to 1" in caplog.text


def test_joined_batches_are_those_of_one_call(processor):
    prompts = [{name: item[name] for name in item if name.startswith("input")} for item in ITEMS[:3]]
    alone = [processor(image, **own) for image, own in zip(IMAGES, prompts, strict=True)]
    alone.append(processor(IMAGES[2], input_masks=[MASK, ~MASK]))
    together = processor(
        [*IMAGES, IMAGES[2]],
        input_boxes=[BOXES[0], None, None, None],
        input_points=[None, prompts[1]["input_points"], None, None],
        input_labels=[None, prompts[1]["input_labels"], None, None],
        input_masks=[None, None, [MASK], [MASK, ~MASK]],
    )
    joined = ScaBatch.cat(alone)
    assert joined.keys() == together.keys()
    real = together["region_mask"]
    for name, value in together.items():
        ours, theirs = (joined[name][real], value[real]) if name == "task_ids" else (joined[name], value)
        assert joined[name].dtype == value.dtype and torch.equal(ours, theirs), name


def test_a_bad_item_is_named(describe):
    for index, (item, told) in enumerate(
        [
            ({"image": IMAGES[0], "boxes": BOXES[0]}, "unknown keys 'boxes'; known are image, input_points"),
            ({"image": IMAGES[0], "label": 3}, r"use KeyDataset\(rows, \"image\"\)"),
            ({"input_boxes": BOXES[0]}, "needs the key image"),
            ({"image": IMAGES[0], "input_boxes": [[1, 1, 900, 9]]}, "region 0: box .* reaches outside"),
            ([IMAGES[0], IMAGES[1]], "got 2 images instead of one"),
            (np.stack([np.asarray(IMAGES[0])] * 2), "got 2 images instead of one"),
            (7, "cannot use a int"),
            ("nowhere.png", "there is no file"),
            ("http://127.0.0.1:9/picture.png", "cannot be read: ConnectError"),
        ]
    ):
        stream = (item if k == index else IMAGES[0] for k in range(9))
        with pytest.raises((ValueError, TypeError, OSError), match=f"item {index}: .*{told}"):
            list(describe(stream, batch_size=4))
    with pytest.raises(ValueError, match="input_boxes cannot be told apart for a generator"):
        describe((image for image in IMAGES), input_boxes=BOXES)
    with pytest.raises(ValueError, match="item 0: both it and the call have input_boxes"):
        describe(ITEMS[:1], input_boxes=BOXES[:1])


def test_a_silent_server_is_given_up_after_the_time_that_the_call_says(describe):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/picture.png"
        for given in (address, [address], {"image": address}):
            with pytest.raises(ValueError, match=r"picture.png'.* cannot be read: ReadTimeout"):
                describe(given, timeout=0.1)


def test_images_without_regions_have_no_records(describe):
    assert describe(IMAGES[0], input_boxes=[]) == describe({"image": IMAGES[0], "input_boxes": [[]]}) == []
    for empty in (None, [], np.zeros((0, 4))):
        records = describe(IMAGES, input_boxes=[BOXES[0], empty, [[1, 1, 9, 9]]], task="recognition", batch_size=2)
        assert [len(image) for image in records] == [2, 0, 1]
    assert describe(IMAGES, input_boxes=[[], [], []]) == [[], [], []] and describe([]) == []


def test_a_loaded_model_makes_a_pipeline(repository):
    model, processor = AutoModel.from_pretrained(repository), AutoProcessor.from_pretrained(repository)
    describe = pipeline("region-captioning", model=model, processor=processor)
    by_name = pipeline("region-captioning", model=repository)
    assert captions([region_captioning_pipeline(model, processor=processor)(tiny_image())]) == captions(
        [describe(tiny_image())]
    )
    assert type(describe) is type(by_name) and type(describe).__module__ == "sca_hf.modeling.pipeline_sca"
    assert describe(tiny_image())[0]["caption"] == by_name(tiny_image())[0]["caption"]
    by_name.save_pretrained(repository + "-again")
    saved = json.loads(Path(f"{repository}-again/config.json").read_text())
    assert saved["custom_pipelines"]["region-captioning"]["impl"] == "pipeline_sca.RegionCaptioningPipeline"


def test_a_loaded_model_makes_a_pipeline_without_this_package(repository, tmp_path):
    code = (
        "import sys; sys.modules['sca_hf'] = None\n"
        "from transformers import AutoModel, AutoProcessor, pipeline\n"
        "load = dict(pretrained_model_name_or_path=sys.argv[1], trust_remote_code=True)\n"
        "model, processor = AutoModel.from_pretrained(**load), AutoProcessor.from_pretrained(**load)\n"
        "describe = pipeline('region-captioning', model=model, processor=processor)\n"
        "print(type(describe).__module__, describe(sys.argv[2])[0]['caption'])"
    )
    IMAGES[0].save(tmp_path / "image.png")
    done = subprocess.run(
        [sys.executable, "-c", code, repository, str(tmp_path / "image.png")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("transformers_modules.")


def test_wrong_calls_say_what_is_wrong(describe, model, tmp_path, processor):
    with pytest.raises(ValueError, match="one entry for each of 2 images, got 3"):
        describe([tiny_image(), tiny_image()], input_boxes=BOXES)
    with pytest.raises(TypeError, match="no_such_argument"):
        describe(tiny_image(), no_such_argument=1)
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises((ValueError, OSError), match=r"processor|preprocessor_config"):
        pipeline("region-captioning", model=str(tmp_path / "bare"), trust_remote_code=True)
    larger = tiny_tokenizer()
    larger.add_tokens([f"<{i}>" for i in range(model.config.text_config.vocab_size)])
    processor = type(processor).from_config(model.config, larger)
    with pytest.raises(ValueError, match="embeds only"):
        pipeline("region-captioning", model=str(tmp_path / "bare"), processor=processor, trust_remote_code=True)


def test_a_training_checkpoint_serves_at_once(repository, model, processor, tmp_path):
    batch = processor(tiny_image(), captions=["a plain blue triangle"], return_tensors="pt")
    rows = [{name: value[0] for name, value in batch.items() if value.numel()}]
    arguments = TrainingArguments(
        tmp_path / "run", max_steps=1, save_steps=1, report_to="none", use_cpu=True, remove_unused_columns=False,
        per_device_train_batch_size=1, disable_tqdm=True,
    )  # fmt: skip
    trained = AutoModel.from_pretrained(repository)
    trained.include_base_models = False
    collate = lambda rows: {name: row[None] for name, row in rows[0].items()}  # noqa: E731
    Trainer(trained, arguments, train_dataset=rows, data_collator=collate, processing_class=processor).train()

    describe = pipeline("region-captioning", model=str(tmp_path / "run" / "checkpoint-1"), trust_remote_code=True)

    (record,) = describe(tiny_image(), input_boxes=[[3, 3, 40, 40]])
    inputs = processor(tiny_image(), input_boxes=[[3, 3, 40, 40]], return_tensors="pt")
    assert record["caption"] == processor.batch_decode(trained.eval().generate(**inputs))[0][0]


def test_the_library_pipeline_for_images_and_text_works(repository, describe):
    pipe = pipeline("image-text-to-text", model=repository, trust_remote_code=True)
    (answer,) = pipe(tiny_image(), text="", max_new_tokens=20)
    assert answer["generated_text"].strip() == describe(tiny_image())[0]["caption"]
    (recognised,) = pipe(tiny_image(), text="recognition", return_full_text=False)
    assert recognised["generated_text"].strip() == describe(tiny_image(), task="recognition")[0]["caption"]
