"""Teaching the detail encoder names, alone and first."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import TrainingArguments

from sca_hf.data.region import RegionRecordError
from sca_hf.testing import tiny_model
from sca_hf.training import DrawnStream, SeededDataset, pretrain_detail_encoder
from sca_hf.training.detail_pretraining import NamedRegionCollator, RegionNaming, box_means, region_names
from sca_hf.training.stopping import DivergedError


WIDTHS = [8, 8, 16]
COLORS = {"red thing": (220, 30, 30), "blue thing": (30, 30, 220)}


class Pictures:
    """Two squares in each picture, red and blue, at random places."""

    def __init__(self, count):
        self.rows = [self._row(k) for k in range(count)]

    @staticmethod
    def _row(number):
        rng = np.random.default_rng(number)
        pixels = np.full((64, 64, 3), 128, np.uint8)
        regions = []
        for k, (name, color) in enumerate(COLORS.items()):
            x, y = int(rng.integers(4, 40)), 4 + 30 * k
            pixels[y : y + 20, x : x + 20] = color
            regions.append({"region_id": str(k), "box": [x, y, x + 20, y + 20], "category": name, "captions": []})
        return {
            "image": Image.fromarray(pixels),
            "image_id": str(number),
            "width": 64,
            "height": 64,
            "regions": regions,
        }

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class OnlyTexts(Pictures):
    """Whose names may be read, and whose pictures may not."""

    def __iter__(self):
        return ({**row, "image": None} for row in self.rows)

    def __getitem__(self, index):
        raise AssertionError("a picture was opened")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return tiny_model(detail_widths=WIDTHS)


def teach(model, processor, folder, steps=30, pictures=None):
    records = SeededDataset(pictures or Pictures(8), seed=0)
    quiet = TrainingArguments(str(folder), disable_tqdm=True, use_cpu=True)
    pretrain_detail_encoder(model, processor, records, folder, steps=steps, batch_size=4, like=quiet)
    return records


def test_it_learns_names_and_only_the_encoder_changes(model, processor, tmp_path):
    before = copy.deepcopy(model.state_dict())
    records = teach(model, processor, tmp_path)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("detail_encoder") for name in changed)
    assert "detail_encoder.projection.weight" not in changed  # its captions stay until it learns itself
    batch = NamedRegionCollator(processor, region_names(records.dataset))([records[k] for k in range(8)])
    features = box_means(model.detail_encoder(batch["pixel_values"]), batch["boxes"], 64).flatten(0, 1)
    red = features[batch["labels"].flatten() == 1].mean(0)
    blue = features[batch["labels"].flatten() == 0].mean(0)
    nearer = ((features - red).norm(dim=1) < (features - blue).norm(dim=1)).long()
    assert (nearer == batch["labels"].flatten()).float().mean() > 0.9


def test_statistics_are_of_the_pictures_and_stay(model, processor, tmp_path):
    records = teach(model, processor, tmp_path)
    norm = model.detail_encoder.stem_norm
    assert norm.running_mean.abs().max() > 0.01 and norm.num_batches_tracked == 30
    kept = norm.running_mean.clone()
    batch = NamedRegionCollator(processor, region_names(records.dataset))([records[k] for k in range(4)])
    pixels = batch["pixel_values"]
    model.train()
    together = model.detail_encoder(pixels)
    alone = torch.cat([model.detail_encoder(one) for one in pixels.split(1)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert torch.equal(norm.running_mean, kept)


def test_what_was_taught_is_not_taught_again(model, processor, tmp_path):
    other = copy.deepcopy(model)
    teach(model, processor, tmp_path)
    stored = load_file(tmp_path / "details" / "detail_encoder.safetensors")
    teach(other, processor, tmp_path, pictures=OnlyTexts(8))
    for name, value in other.detail_encoder.state_dict().items():
        assert torch.equal(value, stored[name]) and torch.equal(value, model.detail_encoder.state_dict()[name])


def test_the_seed_decides_whatever_was_drawn_before(model, processor, tmp_path):
    other = copy.deepcopy(model)
    teach(model, processor, tmp_path / "one", steps=3)
    torch.manual_seed(7)
    teach(other, processor, tmp_path / "other", steps=3)
    for name, value in other.detail_encoder.state_dict().items():
        assert torch.equal(value, model.detail_encoder.state_dict()[name]), name


def test_what_was_taught_otherwise_is_not_taken(model, processor, tmp_path):
    teach(model, processor, tmp_path, steps=2)
    with pytest.raises(
        ValueError, match=r"trained with other settings \(steps was 2 and is 3\): remove .*details to train it again"
    ):
        teach(model, processor, tmp_path, steps=3)
    pictures = Pictures(8)
    pictures.rows[3]["regions"][1]["category"] = "green thing"
    with pytest.raises(ValueError, match=r"\['blue thing', 'red thing'\] and is \['blue thing', 'green thing'"):
        teach(model, processor, tmp_path, steps=2, pictures=pictures)


def test_box_means_weigh_cells_by_what_is_covered():
    features = torch.arange(16.0).view(1, 1, 4, 4)
    boxes = torch.tensor([[[0.0, 0, 8, 8], [8.0, 8, 24, 16], [4.0, 0, 12, 8]]])  # cells of 8 pixels
    assert box_means(features, boxes, 32)[0, :, 0].tolist() == [0.0, 5.5, 0.5]


def test_regions_without_a_name_do_not_count():
    naming = RegionNaming(tiny_model(detail_widths=WIDTHS).detail_encoder, 3)
    pixels = torch.randn(1, 3, 64, 64)
    boxes = torch.tensor([[[0.0, 0, 30, 30], [float("nan")] * 4]])
    one = naming(pixels, boxes[:, :1], torch.tensor([[2]]))["loss"]
    both = naming(pixels, boxes.nan_to_num(0), torch.tensor([[2, -100]]))["loss"]
    torch.testing.assert_close(one, both)


def test_a_region_without_a_category_is_an_error(model, processor, tmp_path):
    pictures = Pictures(2)
    pictures.rows[1]["regions"][0]["category"] = None
    with pytest.raises(RegionRecordError, match="image 1, region 0 has no category"):
        pretrain_detail_encoder(model, processor, SeededDataset(pictures, 0), tmp_path)


def test_a_stream_is_an_error(model, processor, tmp_path):
    with pytest.raises(ValueError, match="not a streamed one"):
        pretrain_detail_encoder(model, processor, DrawnStream(Pictures(2), 0), tmp_path)


def test_a_model_without_one_is_an_error(processor, tmp_path):
    with pytest.raises(ValueError, match="add_detail_encoder"):
        pretrain_detail_encoder(tiny_model(), processor, SeededDataset(Pictures(2), 0), tmp_path)


def test_weights_that_are_not_finite_are_not_saved(model, processor, tmp_path, monkeypatch):
    monkeypatch.setattr("sca_hf.training.detail_pretraining._LEARNING_RATE", 1e38)
    with pytest.raises(DivergedError, match="Pretraining of the detail encoder diverged within 4 steps"):
        teach(model, processor, tmp_path, steps=4)
    assert not list(tmp_path.rglob("*.safetensors"))
