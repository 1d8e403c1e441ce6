"""How sure a model may be: fitted on regions of its own world and another, saved with it, gone after more training."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import records, saved_model, trainer
from transformers import AutoModel
from transformers.utils import logging as hf_logging

from sca_hf.modeling.modeling_sca import ScaForConditionalGeneration
from sca_hf.training import RegionCollator, SeededDataset, apply_preset, fit_confidence


def world(color, count=30):
    """Pictures of one color and some noise, each with two boxes."""
    made = []
    for record in records(count):
        noise = np.random.default_rng(int(record["image_id"])).integers(0, 60, (60, 80, 3))
        pixels = (np.array(color) + noise).clip(0, 255).astype("uint8")
        made.append({**record, "image_id": f"{color}-{record['image_id']}", "image": Image.fromarray(pixels)})
    return made


INSIDE, OUTSIDE = world([180, 20, 20]), world([10, 20, 190])


def fitted(model, processor, inside=INSIDE, outside=OUTSIDE, **options):
    sets = (SeededDataset(one, seed=0) for one in (inside, outside))
    return fit_confidence(model, RegionCollator(processor), *sets, regions=200, **options)


def confidences(model, processor, made):
    batch = RegionCollator(processor, training=False)(made)
    return model.eval().generate(**batch).confidences[batch["region_mask"]]


def test_pictures_from_elsewhere_are_told_and_others_are_not(model, processor):
    assert model.eval().generate(**RegionCollator(processor, training=False)(INSIDE[:2])).confidences is None
    fit = fitted(model, processor)
    assert fit.inside and fit.outside and fit.unsure_outside > 0.9 and fit.unsure_inside < 0.1
    assert "outside regions" in str(fit)
    new_red, new_blue = world([180, 20, 20], 45)[30:], world([10, 20, 190], 45)[30:]
    assert (confidences(model, processor, new_red) > 0.5).float().mean() > 0.9
    assert (confidences(model, processor, new_blue) < 0.5).float().mean() > 0.9


def test_what_it_captions_wrongly_is_told_like_what_is_from_elsewhere(model, processor):
    fitted(model, processor, mistakes=world([20, 190, 10]))
    new_red, new_green = world([180, 20, 20], 45)[30:], world([20, 190, 10], 45)[30:]
    assert (confidences(model, processor, new_red) > 0.5).float().mean() > 0.9
    assert (confidences(model, processor, new_green) < 0.5).float().mean() > 0.9


def test_the_head_changes_nothing_else_and_learns_no_more(model, processor):
    batch = RegionCollator(processor, training=False)(INSIDE[:2])
    before = model.eval().generate(**batch)
    state = torch.get_rng_state()
    fitted(model, processor)
    assert torch.equal(torch.get_rng_state(), state), "what is drawn later does not depend on the fit"
    after = model.generate(**batch)
    assert torch.equal(before.sequences, after.sequences) and torch.equal(before.caption_scores, after.caption_scores)
    assert not any(parameter.requires_grad for parameter in model.confidence_head.parameters())


def test_the_same_seed_makes_the_same_head(make_model, processor):
    heads = []
    for seed in (0, 0, 1):
        model = make_model()
        fitted(model, processor, seed=seed)
        heads.append(model.confidence_head.hidden.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("whole", [True, False])
def test_it_is_saved_loaded_and_in_the_records(make_model, processor, tmp_path, whole):
    model = saved_model(make_model, tmp_path / "model")
    fitted(model, processor)
    model.save_pretrained(tmp_path / "saved", include_base_models=whole)
    again = AutoModel.from_pretrained(tmp_path / "saved")
    batch = RegionCollator(processor, training=False)(INSIDE[:2])
    expected = model.eval().generate(**batch).confidences
    outputs = again.eval().generate(**batch)
    assert torch.equal(outputs.confidences, expected)
    described = processor.post_process_regions(outputs, batch["original_sizes"], batch["reshaped_input_sizes"])
    assert described[0][0]["confidence"] == pytest.approx(expected[0, 0].item())
    found = processor.caption_anything(again, INSIDE[0]["image"], {"points_per_side": 2}, boxes=[[5, 5, 40, 30]])
    assert 0 <= found[0]["confidence"] <= 1


def test_training_drops_what_was_of_the_model_before(model, processor, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    fitted(model, processor)
    apply_preset(model, "mixer")
    assert model.confidence_head is None and model.config.confidence_size is None
    assert "or fit_confidence." in caplog.text


def test_too_few_pictures_and_no_difference_are_said(model, processor, monkeypatch, caplog):
    with pytest.raises(ValueError, match=r"data\.outside has one picture"):
        fitted(model, processor, outside=OUTSIDE[:1])
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    hf_logging.set_verbosity_warning()
    other = [{**record, "image_id": f"again-{record['image_id']}"} for record in INSIDE]
    fitted(model, processor, outside=other)
    assert "can hardly tell them from those" in caplog.text


def test_a_run_of_the_trainer_is_fitted_and_saved(make_model, processor, tmp_path):
    run = trainer(saved_model(make_model, tmp_path / "model"), processor, tmp_path / "run", train=INSIDE[:8])
    run.train()
    fit = fit_confidence(run.model, run.data_collator, run.train_dataset, SeededDataset(OUTSIDE, 0), regions=100)
    run.save_model(str(tmp_path / "saved"))
    assert fit.outside and ScaForConditionalGeneration.from_pretrained(tmp_path / "saved").confidence_head is not None
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["confidence_size"] == 128
