"""Everything in an image, against the plain way: encode for every 64 points, caption all of them, choose at the end.

The plain way is the published model's own, of the library's modules: `PlainSca` for the arithmetic, loops for the
choice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from sca_hf.modeling.modeling_sca import ScaForConditionalGeneration
from sca_hf.processing.anything_sca import encode_image
from sca_hf.processing.anything_settings_sca import AnythingSettings
from sca_hf.processing.mask_generation_sca import select_masks, stability_scores
from sca_hf.processing.masks_sca import decode_rle, encode_rle
from sca_hf.processing.processing_sca import ScaProcessor

from .measure import interleaved
from .plain import CHUNK, PlainSca
from .shapes import Size, build_model


# Of a mask and the plain way's; they differ where a logit is 0 but for rounding.
MASK_IOU = 0.999
POINTS_PER_BATCH, BEAMS = 64, 3
# How many of a random model's masks are to be left, and how many times faster at least.
SURVIVORS, QUICK_SURVIVORS, GAIN = (40, 80), (10, 40), 10.0


@dataclass
class FoundRegion:
    """A region that is left at the end: the point that found it, its mask as RLE, its caption."""

    point: int
    mask: str
    caption: str


def processor_of(model: ScaForConditionalGeneration) -> ScaProcessor:
    """A processor whose words are the ids, so that equal captions are equal ids."""
    words = {f"w{number}": number for number in range(model.config.text_config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return ScaProcessor.from_config(model.config, PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def noise_image(size: Size) -> Image.Image:
    """A square picture of coarse random colors under noise, of the model's own size."""
    generator = np.random.default_rng(5)
    coarse = Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((size.image_size,) * 2, Image.Resampling.BICUBIC)).astype(np.int64)
    return Image.fromarray((pixels + generator.integers(-24, 25, pixels.shape)).clip(0, 255).astype(np.uint8))


@torch.no_grad()
def choose_settings(
    model: ScaForConditionalGeneration,
    processor: ScaProcessor,
    image: Image.Image,
    points: int,
    survivors: tuple[int, int],
) -> AnythingSettings:
    """Thresholds that leave a number of masks within `survivors`: a random model's mean nothing of themselves."""
    encoding, _ = encode_image(model, processor, image)
    grid = processor.grid_prompts([image.size[::-1]], points)
    inputs = {name: value for name, value in grid.items() if not name.endswith("sizes")}
    output = model(**encoding.as_inputs(), **inputs)
    logits, ious = output.pred_masks.flatten(0, 2), _tame(model, output.iou_scores.flatten())
    offset = logits.abs().median().item() / 4
    stable = _between(stability_scores(logits, offset=offset), len(logits) // 2)
    fewest, largest = survivors
    # Masks of a random model fill the image, so that their boxes are all alike: the masks themselves are compared.
    for overlap in (0.7, 0.6, 0.5, 0.4):
        for count in range(largest, len(ious) - 1, largest // 2):
            limits = {
                "pred_iou_thresh": _between(ious, count),
                "stability_score_thresh": stable,
                "stability_score_offset": offset,
                "box_nms_thresh": 1.0,
                "mask_nms_thresh": overlap,
            }
            if fewest <= len(select_masks(logits, ious, **limits)) <= largest:
                return AnythingSettings(points_per_side=points, **limits)
    raise RuntimeError("no threshold leaves the wanted number of masks.")


def _tame(model: ScaForConditionalGeneration, ious: torch.Tensor) -> torch.Tensor:
    """Bring the IoU that a random model expects into 0..1, in the model too."""
    head = model.sam.mask_decoder.iou_prediction_head.proj_out
    middle, scale = ious.mean(), 0.4 / (ious - ious.mean()).abs().max()
    head.bias.copy_((head.bias - middle) * scale + 0.5)
    head.weight.mul_(scale)
    return (ious - middle) * scale + 0.5


def _between(values: torch.Tensor, count: int) -> float:
    """A threshold that `count` values exceed: between two of them, so that rounding decides nothing."""
    ordered = values.sort(descending=True).values
    return ((ordered[count - 1] + ordered[count]) / 2).item()


def ours(
    model: ScaForConditionalGeneration, processor: ScaProcessor, image: Image.Image, settings: AnythingSettings
) -> list[FoundRegion]:
    """The model's own way."""
    grid = {tuple(point): index for index, point in enumerate(_grid(image, settings.points_per_side).tolist())}
    records = processor.caption_anything(model, image, settings, num_beams=BEAMS)
    return [FoundRegion(grid[tuple(r["point_coords"][0])], r["segmentation"]["counts"], r["caption"]) for r in records]


@torch.no_grad()
def plain(
    module: PlainSca, processor: ScaProcessor, image: Image.Image, settings: AnythingSettings
) -> list[FoundRegion]:
    """The plain way."""
    pixels = processor(image)["pixel_values"].to(module.sam.device)
    points = torch.from_numpy(_grid(image, settings.points_per_side)).float().to(pixels.device)
    masks, ious, captions = [], [], []
    for batch in points.split(POINTS_PER_BATCH):
        # The pixels, not their encoding: the encoder runs for every batch.
        output, tokens, image_tokens = module.decode(pixel_values=pixels, input_points=batch[None, :, None])
        masks.append(output.pred_masks[0])
        ious.append(output.iou_scores[0])
        for part in range(0, len(batch), CHUNK):
            rows = slice(part, part + CHUNK)
            prefixes = module.prefix(tokens[:, rows], image_tokens[rows]).flatten(0, 2)
            ids = module.language_model.generate(
                inputs_embeds=prefixes,
                attention_mask=torch.ones(prefixes.shape[:2], dtype=torch.long, device=prefixes.device),
                max_new_tokens=20,
                num_beams=BEAMS,
                do_sample=False,
            )
            captions += processor.tokenizer.batch_decode(ids)
    logits, scores = torch.cat(masks), torch.cat(ious)
    kept = plain_choice(logits.flatten(0, 1), scores.flatten(), settings)
    found = []
    for index in kept:
        point, head = divmod(index, logits.shape[1])
        size = [image.size[::-1]]
        mask = processor.post_process_masks([logits[point : point + 1, head : head + 1]], size, size)[0][0, 0]
        found.append(FoundRegion(point, encode_rle(mask.cpu().numpy())["counts"], captions[point]))
    return found


def plain_choice(logits: torch.Tensor, ious: torch.Tensor, settings: AnythingSettings) -> list[int]:
    """Choose masks one after the other, best first."""
    stability = stability_scores(logits, offset=settings.stability_score_offset)
    kept: list[int] = []
    for index in ious.argsort(descending=True, stable=True).tolist():
        if ious[index] <= settings.pred_iou_thresh or stability[index] < settings.stability_score_thresh:
            continue
        mask = logits[index] > 0
        if mask.any() and all(_iou(mask, logits[other] > 0) <= settings.mask_nms_thresh for other in kept):
            kept.append(index)
    return kept


def _iou(mask: torch.Tensor, other: torch.Tensor) -> float:
    return ((mask & other).sum() / (mask | other).sum()).item()


def _grid(image: Image.Image, side: int) -> np.ndarray:
    steps = (np.arange(side) + 0.5) / side
    return np.array([(x * image.width, y * image.height) for y in steps for x in steps])


def bench_anything(
    size: Size, points: int, device: torch.device, bounded: bool, survivors: tuple[int, int] = SURVIVORS
) -> bool:
    """One image, a grid of `points` x `points`; small shapes are not `bounded` in what they gain."""
    model = build_model(size, device)
    processor, image = processor_of(model), noise_image(size)
    settings = choose_settings(model, processor, image, points, survivors)
    module = PlainSca(model, "sdpa")
    counts = {name: _count_calls(encoder) for name, encoder in _encoders(model, module).items()}
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(model, processor, image, settings),
        "plain-sdpa": lambda: plain(module, processor, image, settings),
    }
    seconds, results = interleaved(calls, 1, device)
    gain = seconds["plain-sdpa"] / seconds["ours"]
    print(f"\nanything, {size.image_size} px, {points} x {points} points, {BEAMS} beams, {settings}")
    for name, spent in seconds.items():
        print(f"  {name:12} {spent:9.1f} s, {counts[name][0]} encodings, {len(results[name])} regions", flush=True)
    mine, other = results["ours"], results["plain-sdpa"]
    same = {w: [getattr(one, w) for one in mine] == [getattr(one, w) for one in other] for w in ("point", "caption")}
    lowest = min((_overlap(one, two, size.image_size) for one, two in zip(mine, other, strict=False)), default=1.0)
    same["mask"] = lowest >= MASK_IOU
    print(f"  masks: IoU of each pair at least {lowest:.5f}")
    print(
        f"  {gain:.1f} x as fast; the same points: {same['point']}, masks: {same['mask']}, captions: {same['caption']}"
    )
    print(f"  {len({one.caption for one in mine})} different captions")
    good = all(same.values()) and counts["ours"][0] == 1
    if bounded:
        print(
            f"  right: {GAIN} x as fast or more, one encoding, {survivors[0]} to {survivors[1]} regions, all the same"
        )
        good &= gain >= GAIN and survivors[0] <= len(mine) <= survivors[1]
    return good


def _overlap(one: FoundRegion, two: FoundRegion, side: int) -> float:
    """IoU of two masks of a square image: a logit near 0 may round to either side."""
    first, second = (decode_rle({"size": [side, side], "counts": found.mask}) for found in (one, two))
    return float((first & second).sum() / (first | second).sum())


def _encoders(model: ScaForConditionalGeneration, module: PlainSca) -> dict[str, torch.nn.Module]:
    return {"ours": model.sam.vision_encoder, "plain-sdpa": module.sam.vision_encoder}


def _count_calls(module: torch.nn.Module) -> list[int]:
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    module.register_forward_hook(count)
    return calls
