import numpy as np
import pytest
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments, pipeline

from sca_hf.testing import tiny_image, tiny_tokenizer


BOXES = [[[3, 3, 40, 40], [20, 10, 70, 50]], [[1, 1, 30, 30]], [[2, 2, 60, 20]]]


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

    assert len(records) == 2 and records[0].keys() == {"caption", "score", "mask", "iou", "box"}
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
