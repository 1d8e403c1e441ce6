import json
import subprocess
import sys
from functools import partial

import datasets
import numpy as np
import pytest
import torch
from transformers import SamProcessor

from sca_hf.processing.images_sca import as_images
from sca_hf.processing.processing_sca import ScaProcessor
from sca_hf.testing import CAPTIONS, tiny_config, tiny_image, tiny_tokenizer


IMAGES = [tiny_image(0, (80, 60)), tiny_image(1, (30, 90))]
KEYS = {
    "pixel_values",
    "original_sizes",
    "reshaped_input_sizes",
    "input_points",
    "input_labels",
    "input_boxes",
    "input_masks",
    "mask_index",
    "region_mask",
    "prompt_layout",
    "task_ids",
}
TEXT_KEYS = {"input_ids", "attention_mask", "labels"}


def same(batch, other):
    return set(batch) == set(other) and all(torch.equal(value, other[key]) for key, value in batch.items())


def test_a_call_returns_what_the_model_takes(processor):
    batch = processor(IMAGES)
    assert set(batch) == KEYS
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    assert batch["original_sizes"].tolist() == [[60, 80], [90, 30]]
    assert batch["reshaped_input_sizes"].tolist() == [[48, 64], [64, 21]]
    assert batch["input_masks"].shape == (0, 32, 32) and batch["input_points"].shape == (2, 1, 0, 2)


def test_pixels_boxes_and_points_are_those_of_the_librarys_processor(processor):
    boxes = [[[1, 2, 30, 40], [5.5, 6, 20, 60]], [[0, 0, 30, 90], [3, 3, 4, 4.5]]]
    points = [[[[1, 2], [3, 4]], [[5, 6], [80, 60]]], [[[1, 2], [3, 4]], [[5, 6], [7, 8.25]]]]
    labels = [[[1, 0], [1, 1]], [[0, 1], [1, 1]]]
    prompts = dict(input_boxes=boxes, input_points=points, input_labels=labels)
    ours, theirs = (
        processor(IMAGES, **prompts),
        SamProcessor(processor.image_processor)(IMAGES, **prompts, return_tensors="pt"),
    )
    for key in ("pixel_values", "original_sizes", "reshaped_input_sizes", "input_labels"):
        assert torch.equal(ours[key], theirs[key])
    for key in ("input_boxes", "input_points"):
        assert torch.allclose(ours[key], theirs[key].float(), atol=1e-5) and ours[key].dtype == torch.float32


def test_captions_become_ids_and_labels_beside_the_prompts(processor):
    batch = processor(IMAGES, input_boxes=[[[0, 0, 9, 9]] * 2, [[0, 0, 9, 9]]], captions=[["a", None], ["a cat"]])
    assert set(batch) == KEYS | TEXT_KEYS
    assert batch["labels"].shape[:2] == batch["region_mask"].shape
    assert processor.batch_decode(batch["labels"], batch["region_mask"]) == [["a", ""], ["a cat"]]


def test_prompts_for_cached_embeddings_are_the_same_without_pixels(processor):
    prompts = dict(input_boxes=[[[1, 2, 30, 40]], [[0, 0, 20, 20]]], captions=[["a"], ["b"]])
    whole = processor(IMAGES, **prompts)
    for sizes in ([(60, 80), (90, 30)], whole["original_sizes"], whole["original_sizes"].numpy()):
        alone = processor(original_sizes=sizes, **prompts)
        assert same({**alone, "pixel_values": whole["pixel_values"]}, whole)


def test_every_form_of_image_makes_the_same_batch(processor):
    whole = processor(IMAGES)
    assert same(processor([np.asarray(image) for image in IMAGES]), whole)
    assert same(processor([torch.tensor(np.asarray(image)).permute(2, 0, 1) for image in IMAGES]), whole)


def test_casting_a_batch_casts_pixels_and_never_coordinates(processor):
    batch = processor(IMAGES, input_masks=[[np.ones((60, 80), bool)], [np.ones((90, 30), bool)]])
    batch["image_embeddings"] = torch.zeros(2, 4, 8, 8)
    cast = batch.to("cpu", torch.bfloat16)
    halves = {key for key, value in cast.items() if value.dtype == torch.bfloat16}
    assert halves == {"pixel_values", "image_embeddings"} and cast is batch
    assert batch.to(dtype=torch.float16)["input_boxes"].dtype == torch.float32
    assert batch.to("meta")["input_labels"].device.type == "meta"


def test_tasks_and_text_name_what_to_do(processor):
    assert processor(IMAGES)["task_ids"].tolist() == [[1], [1]]
    assert processor(IMAGES, task="recognition")["task_ids"].tolist() == [[0], [0]]
    by_text = processor(IMAGES, text=["recognition", ""])
    assert by_text["task_ids"].tolist() == [[0], [1]]
    assert by_text["input_ids"].shape == (2, 1, 0)  # what a pipeline decodes to an empty text
    with pytest.raises(ValueError, match="given twice"):
        processor(IMAGES, text="caption", task="recognition")
    with pytest.raises(ValueError, match="takes no prompt text"):
        processor(IMAGES, text="describe the dog")


def test_a_processor_of_other_tasks_has_its_own_default(processor, tokenizer):
    other = ScaProcessor(processor.image_processor, tokenizer, tasks=["color", "shape"])
    assert other(IMAGES)["task_ids"].tolist() == [[1], [1]]


@pytest.mark.parametrize(
    ("call", "kind", "told"),
    [
        (dict(boxes=[[0, 0, 1, 1]]), TypeError, "unknown keyword argument.*boxes"),
        (dict(text_kwargs={"truncation": True}), TypeError, "text_kwargs .* got truncation"),
        (dict(original_sizes=[(60, 80)]), ValueError, "either images or"),
        (dict(images=None), ValueError, "either images or"),
        (dict(images=None, original_sizes=[60, 80]), ValueError, "integers .height, width. per image"),
        (dict(images=None, original_sizes=[(60, 80, 3)]), ValueError, "original_sizes"),
        (dict(images=None, original_sizes=[(0, 80)]), ValueError, "image 0 has no pixels"),
        (dict(images=np.zeros((1, 900, 3), np.uint8)), ValueError, "image 0 of 900 x 1 .*too narrow"),
        (dict(task=""), ValueError, "unknown task ''; known are 'recognition', 'caption'"),
        (dict(task=[]), ValueError, "task names 0"),
        (dict(captions="a", padding=False), ValueError, "padding=False"),
        (dict(max_length=1, captions="a"), ValueError, "at least 2 tokens, the limit is 1"),
    ],
)
def test_a_bad_call_is_told(processor, call, kind, told):
    with pytest.raises(kind, match=told):
        processor(**{"images": IMAGES[:1], **call})


def test_arguments_of_the_image_processor_pass_through(processor):
    plain = processor(IMAGES, do_normalize=False)["pixel_values"]
    assert torch.equal(plain, processor(IMAGES, images_kwargs={"do_normalize": False})["pixel_values"])
    assert plain.min() >= 0 and not torch.equal(plain, processor(IMAGES)["pixel_values"])
    smaller = processor(IMAGES, size={"longest_edge": 32}, pad_size={"height": 32, "width": 32})
    assert smaller["pixel_values"].shape[-1] == 32 and smaller["input_boxes"][0, 0].tolist() == [0, 0, 32, 24]


def test_numpy_and_plain_output(processor):
    assert all(isinstance(value, np.ndarray) for value in processor(IMAGES, return_tensors="np").values())


def test_captions_can_be_padded_to_a_common_length(processor):
    batch = processor(IMAGES[0], captions="a", padding="max_length")
    assert batch["labels"].shape == (1, 1, processor.max_caption_length)
    assert processor(IMAGES[0], captions=CAPTIONS[0], max_length=5)["labels"].shape[-1] == 5


def test_exif_turns_the_frame_of_the_prompts(processor):
    image = tiny_image(0, (80, 60))
    image.getexif()[274] = 6  # turned by a quarter: upright it is 60 wide and 80 high
    batch = processor(image, input_boxes=[[0, 0, 60, 80]])
    assert batch["original_sizes"].tolist() == [[80, 60]]
    with pytest.raises(ValueError, match="image of 60 x 80"):
        processor(image, input_boxes=[[0, 0, 80, 60]])
    assert np.asarray(as_images(image)[0]).shape == (80, 60, 3)


def test_the_processor_of_a_configuration_fits_it(tokenizer):
    config = tiny_config(caption_add_bos=True, max_caption_length=7, mixer_config={"tasks": ["a", "b"]})
    processor = ScaProcessor.from_config(config, tokenizer)
    assert (processor.mask_size, processor.tasks, processor.max_caption_length) == (32, ["a", "b"], 7)
    assert processor.caption_add_bos and processor(IMAGES)["pixel_values"].shape == (2, 3, 64, 64)
    with pytest.raises(ValueError, match="the model takes 64 pixels"):
        ScaProcessor.from_config(config, tokenizer, type(processor.image_processor)())


def test_a_processor_needs_both_parts(processor, tokenizer):
    with pytest.raises(ValueError, match="needs an image_processor and a tokenizer"):
        ScaProcessor(tokenizer=tokenizer)
    with pytest.raises(ValueError, match="tasks are a list"):
        ScaProcessor(processor.image_processor, tokenizer, tasks="caption")


def test_own_settings_survive_saving(tmp_path, processor):
    own = ScaProcessor(
        processor.image_processor,
        tiny_tokenizer(pad_token=None),
        tasks=("caption",),
        max_caption_length=9,
        caption_add_bos=True,
        mask_size=48,
    )
    before = own.to_dict()
    own.save_pretrained(tmp_path)
    assert own.to_dict() == before and "auto_map" not in vars(own.image_processor)
    loaded = ScaProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == before
    assert same(loaded(IMAGES, captions=[["a"], ["a cat"]]), own(IMAGES, captions=[["a"], ["a cat"]]))


LOAD = """
import sys
from PIL import Image
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert "sca_hf" not in sys.modules
batch = processor(Image.new("RGB", (80, 60)), input_boxes=[[1, 2, 3, 4]], captions=["a red cat"])
processor.save_pretrained(sys.argv[2])
print({key: value.shape for key, value in batch.items()}, processor.batch_decode(batch["labels"]))
"""


def test_a_saved_processor_loads_without_this_package_and_saves_again(tmp_path, processor):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    processor.save_pretrained(first)
    assert json.loads((first / "processor_config.json").read_text())["auto_map"] == {
        "AutoProcessor": "processing_sca.ScaProcessor"
    }
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache"), "PATH": "/usr/bin"}
    told = []
    for source, target in ((first, second), (second, third)):
        done = subprocess.run(
            [sys.executable, "-I", "-c", LOAD, source, target],
            env=environment,
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        told.append(done.stdout)
        # Saved again from the loaded code: the same files.
        assert {path.name for path in source.glob("*.py")} == {path.name for path in target.glob("*.py")} != set()
    assert "a red cat" in told[0] and told[0] == told[1]


def data_set(**columns):
    return datasets.Dataset.from_dict({"image": [tiny_image(i) for i in range(3)], **columns})


def test_it_is_a_transform_of_a_data_set(processor, model):
    boxes = [[[1, 1, 30, 30]], [[1, 1, 30, 30], [2, 2, 40, 40]], [[3, 3, 9, 9]]]
    rows = data_set(input_boxes=boxes, id=[7, 8, 9]).with_transform(processor, columns=["image", "input_boxes"])
    expected = processor([tiny_image(i) for i in range(3)], input_boxes=boxes)
    batch = rows[:3]
    assert all(torch.equal(value, expected[name]) for name, value in batch.items())
    assert expected.keys() - batch.keys() == {"input_masks"}, "there is none, and so it has no row"
    assert torch.equal(model.generate(**batch).sequences, model.generate(**expected).sequences)
    assert rows[1]["input_boxes"].shape == (2, 4) and rows[1]["pixel_values"].shape == (3, 64, 64)
    whole = data_set()
    whole.set_transform(partial(processor, task="recognition"))
    assert whole[2]["region_mask"].tolist() == [True] and whole[2]["task_ids"].tolist() == [0]
    prepared = data_set(input_boxes=boxes).map(processor, batched=True, remove_columns=["image"]).with_format("torch")
    assert torch.equal(prepared[1]["pixel_values"], expected["pixel_values"][1])


def test_columns_that_it_cannot_take_are_named(processor):
    with pytest.raises(ValueError, match=r"does not take the column 'id': .*with_transform\(processor, columns="):
        data_set(id=[1, 2, 3]).with_transform(processor)[0]
    with pytest.raises(ValueError, match="mask prompts are not one row per image"):
        processor({"image": [tiny_image()], "input_masks": [[np.ones((60, 80), bool)]]})
    with pytest.raises(ValueError, match="the columns have no image: 'input_boxes'"):
        processor({"input_boxes": [[[1, 1, 9, 9]]]})
    with pytest.raises(ValueError, match="task are both columns and arguments of the call"):
        processor({"image": [tiny_image()], "task": ["caption"]}, task="caption")
