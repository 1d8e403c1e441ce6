"""The fast forms equal the library's own modules: two-way transformer, mixer, masks of SAM and SAM-HQ, gradients."""

import pytest
import torch
from transformers import SamMaskDecoderConfig
from transformers.models.sam.modeling_sam import SamTwoWayTransformer

from benchmarks.plain import PlainMixer, PlainSca
from sca_hf.modeling.configuration_sca import ScaMixerConfig
from sca_hf.modeling.mixer_sca import ScaTwoWayTransformer, fold_positions, run_two_way
from sca_hf.testing import IMAGE_SIZE


GRID, WIDTH = IMAGE_SIZE // 8, 32
SIZES = dict(hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4, mlp_dim=64)
PROMPTS = {
    "boxes": ("box",),
    "points": ("points",),
    "points of any label": ("points", "labels"),
    "points and boxes": ("points", "labels", "box"),
    "masks": ("mask",),
    "masks and boxes": ("mask", "box"),
    "masks and points": ("mask", "points"),
}

both_attentions = pytest.mark.parametrize("attention", ["eager", "sdpa"])
both_sams = pytest.mark.parametrize("sam_type", ["sam", "sam_hq"])
every_prompt = pytest.mark.parametrize("kinds", PROMPTS.values(), ids=list(PROMPTS))


def assert_equal(actual, expected):
    """Equal to 1e-5 of the largest value, which must be large enough for that to say something."""
    scale = expected.abs().max().item()
    assert scale > 1e-3
    torch.testing.assert_close(actual, expected, atol=1e-5 * scale, rtol=0)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_two_way(attention):
    """Ours and the library's, over equal weights."""
    shape = SamMaskDecoderConfig(**SIZES)
    shape._attn_implementation = attention
    library = SamTwoWayTransformer(shape)
    for parameter in library.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = ScaTwoWayTransformer(ScaMixerConfig(**SIZES, text_hidden_size=8))
    ours.load_state_dict(library.state_dict())
    return ours, library


def run_library(library, tokens, image_tokens, positions):
    """Positions repeated for each region, as SAM's decoder does."""
    as_image = lambda x: x.transpose(-1, -2).unflatten(-1, (GRID, GRID))  # noqa: E731
    repeated = as_image(positions).repeat(len(tokens), 1, 1, 1)
    tokens, image_tokens = library(tokens.unsqueeze(1), as_image(image_tokens), repeated, None)
    return tokens[:, 0], image_tokens[:, 0]


@both_attentions
@pytest.mark.parametrize(("regions", "count"), [(1, 15), (3, 15), (2, 1), (2, 100)])
def test_two_way_transformer(attention, regions, count):
    ours, library = make_two_way(attention)
    inputs = [draw(regions, count, WIDTH), draw(regions, GRID**2, WIDTH, seed=1), draw(GRID**2, WIDTH, seed=2)]
    expected = [x.clone().requires_grad_() for x in inputs]
    for x in inputs:
        x.requires_grad_()
    folded = fold_positions(ours, inputs[2])
    tokens, image_tokens = run_two_way(ours, folded, *inputs[:2], attn_implementation=attention)
    plain_tokens, plain_image = run_library(library, *expected)
    assert_equal(tokens, plain_tokens)
    assert_equal(image_tokens, plain_image)
    (tokens.cos().sum() + image_tokens.cos().sum()).backward()
    (plain_tokens.cos().sum() + plain_image.cos().sum()).backward()
    for x, plain in zip(inputs, expected, strict=True):
        assert_equal(x.grad, plain.grad)
    assert_gradients(ours, library)


def assert_gradients(ours, library):
    # A key's bias shifts all scores of a query alike: its true gradient is 0, and rounding is all that is left of it.
    gradients = {name: p.grad for name, p in library.named_parameters() if not name.endswith("k_proj.bias")}
    scale = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours.get_parameter(name).grad, gradient, atol=1e-5 * scale, rtol=0, msg=name)


@both_attentions
def test_mixer(make_model, attention):
    mixer = make_model(attn_implementation=attention).mixer
    plain = PlainMixer(mixer, attention)
    tokens, image_tokens, positions = draw(2, 3, 7, WIDTH), draw(6, 1, GRID**2, WIDTH), draw(1, WIDTH, GRID, GRID)
    folded = mixer.fold_positions(positions[0].flatten(1).t())
    queries = mixer(tokens.flatten(0, 1), image_tokens[:, 0], folded)
    expected = plain(tokens, image_tokens, positions)
    assert_equal(queries.flatten(1, 2), expected.flatten(0, 1))
    for task in range(2):
        prefix = mixer.prefix(queries, torch.full((6,), task))
        assert_equal(prefix, plain.prefix(expected, task).flatten(0, 1))


def make_inputs(kinds):
    """Two images of three regions, prompts of `kinds`; as our model and as SAM takes them."""
    corners = torch.rand(2, 3, 2, 2) * IMAGE_SIZE
    every = dict(
        box=("input_boxes", torch.cat([corners.amin(dim=2), corners.amax(dim=2)], dim=-1)),
        points=("input_points", torch.rand(2, 3, 4, 2) * IMAGE_SIZE),
        labels=("input_labels", torch.tensor([1, 0, -1, -10]).expand(2, 3, 4)),
        # SAM takes one mask per image, for all of its regions.
        mask=("input_masks", draw(2, 1, 4 * GRID, 4 * GRID)),
    )
    inputs = dict(every[kind] for kind in kinds)
    return inputs | dict(pixel_values=draw(2, 3, IMAGE_SIZE, IMAGE_SIZE))


@both_attentions
@both_sams
@every_prompt
@torch.no_grad()
def test_masks_scores_and_prefix(make_model, attention, sam_type, kinds):
    model = make_model(sam_type=sam_type, attn_implementation=attention)
    inputs, plain = make_inputs(kinds), PlainSca(model, attention)
    regions = 1 if kinds == ("mask",) else 3
    output = model(**inputs, input_ids=torch.ones(2, regions, 1, dtype=torch.long), output_masks=True)
    expected, *decoded = plain.decode(**inputs)
    assert_equal(output.pred_masks, expected.pred_masks)
    assert_equal(output.iou_scores, expected.iou_scores)
    assert_equal(output.prefix_embeds.squeeze(2), plain.prefix(*decoded).squeeze(2))
    single = model(**inputs, multimask_output=False)
    expected, *_ = plain.decode(**inputs, multimask_output=False)
    assert_equal(single.pred_masks, expected.pred_masks)
    assert_equal(single.iou_scores, expected.iou_scores)


@both_attentions
@both_sams
@pytest.mark.parametrize("kinds", [("box",), ("mask", "points")], ids=["boxes", "masks and points"])
def test_gradients_of_the_mask_decoder_and_mixer(make_model, attention, sam_type, kinds):
    model = make_model(sam_type=sam_type, attn_implementation=attention, freeze_base_models=False)
    inputs, plain = make_inputs(kinds), PlainSca(model, attention)
    output = model(**inputs, input_ids=torch.ones(2, 3, 1, dtype=torch.long), output_masks=True)
    loss = output.pred_masks.cos().sum() + output.iou_scores.cos().sum() + output.prefix_embeds.cos().sum()
    loss.backward()
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected, *decoded = plain.decode(**inputs)
    loss = expected.pred_masks.cos().sum() + expected.iou_scores.cos().sum() + plain.prefix(*decoded).cos().sum()
    loss.backward()
    gradients = {f"sam.{name}": p.grad for name, p in plain.sam.named_parameters() if p.grad is not None}
    gradients |= {f"mixer.{name}": p.grad for name, p in plain.mixer.named_parameters() if p.grad is not None}
    assert set(ours) <= set(gradients)
    scale = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, gradient in gradients.items():
        # The head of a mask that was not asked for is not run, where the library runs it and drops its mask.
        actual = ours[name] if name in ours else torch.zeros_like(gradient)
        torch.testing.assert_close(actual, gradient, atol=1e-5 * scale, rtol=0, msg=name)
