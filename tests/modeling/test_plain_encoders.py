"""Plain image encoders in SAM's place: patches in order, only the neck and the mixer learn, saved and loaded."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, SamModel

from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.modeling.encoder_sca import ScaEncoderModel
from sca_hf.testing import tiny_image, tiny_sam_config, tiny_tokenizer
from sca_hf.training.arguments import ScaTrainingArguments
from sca_hf.training.trainer import ScaTrainer
from tests.modeling.test_segmenters import tiny_language_model
from tests.training.tiny_runs import records


SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
ENCODERS = {
    "clip": dict(model_type="clip_vision_model", image_size=32, patch_size=8, projection_dim=16, **SIZES),
    "siglip": dict(model_type="siglip_vision_model", image_size=32, patch_size=8, vision_use_head=False, **SIZES),
    "dinov2": dict(model_type="dinov2", image_size=32, patch_size=8, **SIZES),
    "dinov2 with registers": dict(model_type="dinov2_with_registers", image_size=32, patch_size=8, **SIZES),
    "dinov3": dict(model_type="dinov3_vit", image_size=32, patch_size=8, **SIZES),
    "mae": dict(model_type="vit_mae", image_size=32, patch_size=8, **SIZES),
    "i-jepa": dict(model_type="ijepa", image_size=32, patch_size=8, **SIZES),
    "vit": dict(model_type="vit", image_size=32, patch_size=8, **SIZES),
    "convnext": dict(model_type="convnext", image_size=32, patch_size=2, hidden_sizes=[8, 16, 24], depths=[1, 1, 1],
                     num_stages=3),
}  # fmt: skip


def encoder(name):
    fields = dict(ENCODERS[name])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModel.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields)).eval()


def sam_of(name, image_size=64):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return ScaEncoderModel.from_encoder(encoder(name), SamModel(tiny_sam_config()), image_size)


def whole(name, **overrides):
    mixer = dict(num_hidden_layers=2, num_attention_heads=4, mlp_dim=64) | overrides
    return ScaForConditionalGeneration.from_sam_text_pretrained(sam_of(name), tiny_language_model(), mixer)


def batch(model, **more):
    processor = ScaProcessor.from_config(model.config, tiny_tokenizer())
    return processor(tiny_image(0), input_boxes=[[[5, 5, 60, 50], None]], input_points=[[None, [[30, 30]]]], **more)


@pytest.mark.parametrize("form", ["decoder", "roi"])
@pytest.mark.parametrize("name", ENCODERS)
def test_it_learns_by_its_neck_captions_and_comes_back(name, form, tmp_path):
    wiring = {} if form == "decoder" else dict(query_type="roi", num_hidden_layers=0, roi_size=2)
    model = whole(name, **wiring)
    assert model.config.image_frame.resize == "stretch" and model.config.image_frame.side == 64
    model.train()
    model(**batch(model, captions=[["a star", "a ring"]])).loss.backward()
    learned = {key for key, weight in model.sam.named_parameters() if weight.grad is not None}
    assert learned and all(key.startswith("vision_encoder.neck.") for key in learned)
    assert not model.sam.vision_encoder.encoder.training and model.sam.vision_encoder.neck.training
    model.eval()
    before = model.generate(**batch(model), max_new_tokens=4)
    model.save_pretrained(tmp_path)
    again = ScaForConditionalGeneration.from_pretrained(tmp_path)
    after = again.generate(**batch(again), max_new_tokens=4)
    assert torch.equal(before.sequences, after.sequences)
    assert torch.allclose(before.pred_masks, after.pred_masks, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ENCODERS)
def test_each_patch_is_where_it_is_in_the_image(name):
    """A change of one part of the image changes the feature of that part most."""
    sam, seen = sam_of(name), []
    sam.vision_encoder.neck.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    plain = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    for row, column in ((0, 0), (0, 7), (7, 0), (5, 2)):
        marked = plain.clone()
        marked[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = torch.randn(3, 8, 8)
        sam.vision_encoder(marked), sam.vision_encoder(plain)
        moved = (seen[-2] - seen[-1]).norm(dim=-1)
        assert divmod(int(moved.argmax()), moved.shape[1]) == (row, column), name


def test_a_decoder_is_that_of_the_sam():
    sam, other = SamModel(tiny_sam_config()).eval(), None
    other = ScaEncoderModel.from_encoder(encoder("vit"), sam, 64)
    for name in ("prompt_encoder", "mask_decoder"):
        theirs = getattr(sam, name).state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in getattr(other, name).state_dict().items())


def test_colors_are_the_encoders_own():
    sam = ScaEncoderModel.from_encoder(encoder("vit"), SamModel(tiny_sam_config()), 64, [0.5] * 3, [0.25] * 3)
    model = ScaForConditionalGeneration.from_sam_text_pretrained(sam, tiny_language_model())
    images = ScaProcessor.from_config(model.config, tiny_tokenizer()).image_processor
    assert list(images.image_mean) == [0.5] * 3 and list(images.image_std) == [0.25] * 3


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [("vit", 60, "expected a multiple of 8, the patch size of vit"), ("convnext", 36, "expected a multiple of 8")],
)
def test_an_image_that_patches_do_not_divide_is_refused(name, side, message):
    with pytest.raises(ValueError, match=message):
        ScaEncoderModel.from_encoder(encoder(name), None, side)


def test_what_gives_no_grid_is_refused():
    with pytest.raises(ValueError, match="must have an image_size and a patch_size"):
        ScaEncoderModel.from_encoder(tiny_language_model())
    sam = sam_of("vit")
    sam.vision_encoder.encoder = encoder("convnext")
    with pytest.raises(ValueError, match="expected a grid of 8 x 8"):
        sam.vision_encoder.encoder.config.patch_size = 8
        sam.vision_encoder(torch.zeros(1, 3, 48, 48))


def test_a_run_trains_the_neck_and_saves_it(tmp_path):
    model = whole("vit")
    args = ScaTrainingArguments(output_dir=tmp_path, max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True)
    processor = ScaProcessor.from_config(model.config, tiny_tokenizer())
    before = {name: value.clone() for name, value in model.sam.state_dict().items()}
    trainer = ScaTrainer(model, args, train_dataset=records(4), processing_class=processor)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    again = ScaForConditionalGeneration.from_pretrained(tmp_path / "model").sam.state_dict()
    moved = {name for name, value in again.items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("vision_encoder.neck.") for name in moved)
