"""The embedding cache: what the live encoder would give, of the right image and encoder, whole or made again."""

import copy
import io
import multiprocessing
import pickle
import time

import pytest
import torch
from PIL import Image

from sca_hf.run_identity import weights_digest
from sca_hf.testing import tiny_image
from sca_hf.training.collator import RegionCollator
from sca_hf.training.draws import SeededDataset
from sca_hf.training.embedding_cache import CachedRecords, EmbeddingCache, EmbeddingCacheError
from tests.training.killed_runs import CONTEXT, fill_cache, records


@pytest.fixture
def cache(tmp_path, model, processor):
    return EmbeddingCache(tmp_path / "cache", model, processor)


def entries(folder):
    return sorted(path for path in folder.rglob("*.safetensors"))


def live(model, processor, record):
    return model.get_image_embeddings(processor(record["image"])["pixel_values"])[0]


def forbid_encoding(model, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(model.sam.vision_encoder, "forward", refuse)


def test_an_embedding_is_the_live_encoders_rounded_to_half_precision(cache, model, processor):
    cached = CachedRecords(records(3), cache)
    for made_alone in range(2):
        embedding = cached[made_alone]["image_embedding"]
        assert torch.equal(embedding, live(model, processor, records()[made_alone]).half())
    cached.fill(batch_size=2, progress=False)
    embedding = cached[2]["image_embedding"]
    assert embedding.dtype == torch.float16 and embedding.shape == cache.shape == (32, 8, 8)
    torch.testing.assert_close(embedding.float(), live(model, processor, records()[2]), rtol=1e-3, atol=1e-4)
    assert "image" not in cached[2] and cached[2]["regions"] == records()[2]["regions"]


def test_training_on_cached_embeddings_is_training_live(cache, model, processor):
    collator = RegionCollator(processor, {"box": 1.0}, box_jitter=0.0)
    draws = [SeededDataset(rows, 0) for rows in (records(4), CachedRecords(records(4), cache))]
    gradients = []
    for rows in draws:
        model.zero_grad()
        model(**collator([rows[k] for k in range(4)])).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.mixer.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=5e-3 * scale + 1e-6, msg=name)


def test_what_is_there_is_not_made_again(cache, model, processor, monkeypatch):
    assert CachedRecords(records(3), cache).fill(batch_size=2, progress=False) == 3
    grown = CachedRecords(records(5), cache)
    assert grown.fill(batch_size=2, progress=False) == 2
    forbid_encoding(model, monkeypatch)
    assert grown.fill(progress=False) == 0 and len(entries(cache.folder)) == 5
    assert grown[4]["image_embedding"].isfinite().all()


def test_equal_images_share_an_entry_whatever_holds_them(cache, tmp_path):
    row = records(1)[0]
    file = io.BytesIO()
    row["image"].save(file, "PNG")
    path = tmp_path / "image.png"
    path.write_bytes(file.getvalue())
    forms = [
        str(path),
        path,
        file.getvalue(),
        {"path": str(path), "bytes": None},
        {"path": None, "bytes": file.getvalue()},
    ]
    assert len({cache.key({**row, "image": form}) for form in forms}) == 1
    # Pixels have another key than their file: the file may hold more, such as its orientation.
    assert cache.key(row) == cache.key({**row, "image": Image.open(path)}) != cache.key({**row, "image": path})
    turned = row["image"].copy()
    turned.putpixel((0, 0), (1, 2, 3))
    assert cache.key({**row, "image": turned}) != cache.key(row)


def test_pictures_that_differ_by_their_orientation_differ_in_their_embeddings(cache):
    picture = tiny_image(0, (60, 60))
    exif = Image.Exif()
    exif[0x0112] = 3
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    row = {"width": 60, "height": 60, "image_id": "x"}
    turned = {**row, "image": Image.open(file)}
    assert turned["image"].tobytes() == picture.tobytes()
    assert cache.key(turned) != cache.key({**row, "image": picture})


def test_nothing_is_served_to_another_encoder_size_or_normalization(cache, make_model, model, processor, tmp_path):
    CachedRecords(records(1), cache).fill(progress=False)
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.sam.vision_encoder.parameters()).view(-1)[0] += 1e-3
    swapped = copy.deepcopy(model)
    with torch.no_grad():
        # The same numbers at other places: a sum would not tell.
        first, second = swapped.sam.vision_encoder.layers[0].mlp.lin1.weight[:2]
        first_copy = first.clone()
        first.copy_(second), second.copy_(first_copy)
    windowed = copy.deepcopy(model)
    windowed.config.sam_config.vision_config.window_size = 2
    normalized = copy.deepcopy(processor)
    normalized.image_processor.image_mean = [0.4, 0.4, 0.4]
    resampled = copy.deepcopy(processor)
    resampled.image_processor.resample = 0
    for encoder, images in [(other, processor), (swapped, processor), (windowed, processor)] + [
        (model, changed) for changed in (normalized, resampled)
    ]:
        another = EmbeddingCache(tmp_path / "cache", encoder, images)
        assert another.folder != cache.folder and another.read(cache.key(records(1)[0])) is None
    assert EmbeddingCache(tmp_path / "cache", copy.deepcopy(model), processor).folder == cache.folder
    halved = copy.deepcopy(model)
    halved.sam.vision_encoder.half()
    assert weights_digest(halved.sam.vision_encoder.state_dict()) != weights_digest(
        model.sam.vision_encoder.state_dict()
    )


def test_a_file_that_was_moved_or_damaged_is_made_again(cache, model, processor):
    cached = CachedRecords(records(2), cache)
    cached.fill(progress=False)
    right = [cached[k]["image_embedding"] for k in range(2)]
    paths = [cache._path(cache.key(row)) for row in records(2)]
    whole = paths[0].read_bytes()
    damages = [whole[:-10], b"", whole[:200] + b"\x00\x01" + whole[202:], paths[1].read_bytes(), b"not a tensor" * 100]
    for damage in damages:
        paths[0].write_bytes(damage)
        assert cache.read(cache.key(records(1)[0])) is None
        torch.testing.assert_close(cached[0]["image_embedding"], right[0], rtol=1e-3, atol=1e-3)
        assert cache.read(cache.key(records(1)[0])) is not None
    paths[0].write_bytes(whole[:-10])
    assert CachedRecords(records(2), cache).fill(progress=False) == 1


@pytest.mark.parametrize("how", ["filled", "read"])
def test_an_entry_damaged_at_its_full_length_is_made_again_with_the_same_bits(cache, how):
    CachedRecords(records(5), cache).fill(batch_size=4, progress=False)
    before = {path: path.read_bytes() for path in entries(cache.folder)}
    for path in list(before)[1:3]:
        data = bytearray(before[path])
        data[-9] ^= 1
        path.write_bytes(data)
    again = CachedRecords(records(5), cache)
    if how == "filled":
        assert again.fill(batch_size=3, progress=False) == 2
        assert again.fill(progress=False) == 0
    else:
        assert len([again[k]["image_embedding"] for k in range(5)]) == 5
    assert {path: path.read_bytes() for path in entries(cache.folder)} == before


def test_other_code_has_a_cache_of_its_own(cache, model, processor, monkeypatch):
    monkeypatch.setattr("sca_hf.run_identity.__version__", "99")
    assert EmbeddingCache(cache.folder.parent, model, processor).folder != cache.folder


def test_a_trained_or_changed_encoder_is_refused(cache, model, processor, tmp_path):
    cached = CachedRecords(records(2), cache)
    cached[0]
    with torch.no_grad():
        next(model.sam.vision_encoder.parameters()).add_(0.01)
    for read in (lambda: cached[1], lambda: cached.fill(progress=False)):
        with pytest.raises(EmbeddingCacheError, match="has changed since its embedding cache was opened"):
            read()
    model.sam.vision_encoder.requires_grad_(True)
    with pytest.raises(EmbeddingCacheError, match="the image encoder is trained"):
        EmbeddingCache(tmp_path, model, processor)
    with pytest.raises(EmbeddingCacheError, match="the image encoder is trained"):
        cached[0]


def test_augmentation_of_images_is_refused(cache):
    class Flip:
        def __call__(self, record, rng):
            return record

    with pytest.raises(EmbeddingCacheError, match="changes images"):
        CachedRecords(SeededDataset(records(2), 0, Flip()), cache)
    Flip.keeps_image = True
    assert "draw" in CachedRecords(SeededDataset(records(2), 0, Flip()), cache)[0]
    with pytest.raises(EmbeddingCacheError, match="a streamed one is trained without it"):
        CachedRecords(iter(records(2)), cache)


def test_masks_of_sam_hq_are_not_trained_on_cached_embeddings(make_model, processor, tmp_path):
    model = make_model(sam_type="sam_hq")
    with pytest.raises(EmbeddingCacheError, match="SAM-HQ also needs other features for its masks"):
        EmbeddingCache(tmp_path, model, processor, mask_loss_weight=1.0)
    record = CachedRecords(records(1), EmbeddingCache(tmp_path, model, processor))[0]
    expected = model.get_image_embeddings(processor(records(1)[0]["image"])["pixel_values"])[0][0]
    assert torch.equal(record["image_embedding"], expected.half())


def test_embeddings_beyond_half_precision_are_refused(cache):
    with pytest.raises(EmbeddingCacheError, match="cannot be cached in half precision"):
        cache.write("0" * 64, torch.full(cache.shape, 1e5))
    assert not entries(cache.folder)


def test_a_record_of_another_size_than_its_image_is_found_out(cache):
    CachedRecords(records(1), cache).fill(progress=False)
    wrong = [{**records(1)[0], "width": 81}]
    with pytest.raises(ValueError, match="its record says 81 x 60"):
        CachedRecords(wrong, cache)[0]


def test_images_of_the_datasets_library_are_read_but_not_decoded(cache, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = []
    for k, row in enumerate(records(3)):
        row["image"].save(tmp_path / f"{k}.png")
        rows.append({**row, "image": str(tmp_path / f"{k}.png")})
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    cached = CachedRecords(table, cache)
    assert cached.fill(progress=False, num_workers=1) == 3
    monkeypatch.setattr(datasets.Image, "decode_example", None)
    record = cached[1]
    assert record["regions"][1]["captions"] == rows[1]["regions"][1]["captions"]
    assert torch.equal(record["image_embedding"], cache.read(cache.key({**rows[1]})))


def test_a_reading_process_needs_no_model(cache):
    cached = CachedRecords(records(2), cache)
    cached.fill(progress=False)
    copied = pickle.loads(pickle.dumps(cached))
    assert torch.equal(copied[1]["image_embedding"], cached[1]["image_embedding"])
    entries(cache.folder)[0].unlink()
    with pytest.raises(EmbeddingCacheError, match="fill the cache before training"):
        [copied[k] for k in range(2)]


def test_two_processes_fill_one_cache_at_once(tmp_path):
    processes = [CONTEXT.Process(target=fill_cache, args=(tmp_path / "cache", 24)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0, 0]
    alone = CONTEXT.Process(target=fill_cache, args=(tmp_path / "alone", 24))
    alone.start()
    alone.join(600)
    together, one = ({p.name: p.read_bytes() for p in entries(tmp_path / name)} for name in ("cache", "alone"))
    assert len(one) == 24 and together == one
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_killed_filling_is_resumed(tmp_path):
    process = CONTEXT.Process(target=fill_cache, args=(tmp_path / "cache", 60))
    process.start()
    while process.is_alive() and len(entries(tmp_path / "cache")) < 10:
        time.sleep(0.001)
    process.kill()
    process.join()
    assert 10 <= len(entries(tmp_path / "cache")) < 60
    made = multiprocessing.get_context("forkserver").SimpleQueue()
    again = CONTEXT.Process(target=fill_cache, args=(tmp_path / "cache", 60, made))
    again.start()
    again.join(600)
    assert again.exitcode == 0 and 0 < made.get() <= 50
    assert len(entries(tmp_path / "cache")) == 60
