"""One training step of the mixer: forward, backward and AdamW, against the library's plain modules."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch

from sca_hf.modeling.modeling_sca import ScaForConditionalGeneration

from .measure import interleaved
from .plain import PlainSca
from .shapes import QUICK, Size, agree, build_model, random_boxes, random_pixels


LABEL_SMOOTHING = 0.1
LABEL_LENGTHS = (8, 20)
# Against plain-eager: how many times faster at least, and what share of its saved activations at most.
LIVE_GAIN, CACHED_GAIN, SAVED_RATIO = 1.25, 1.8, 0.70
# In float64: in float32 inputs of a ReLU that are 0 but for rounding go either way, as the CPU has it.
GRADIENT_TOLERANCE = 1e-5


@dataclass
class Step:
    """What one training step leaves behind: `saved` counts the bytes that the forward keeps for the backward."""

    loss: torch.Tensor
    saved: int
    gradients: dict[str, torch.Tensor] = field(repr=False)


def random_labels(regions: int, vocabulary: int, device: torch.device) -> torch.Tensor:
    """Captions (1, regions, T) of 8 to 20 tokens, -100 after their end."""
    generator = torch.Generator().manual_seed(4)
    shortest, longest = LABEL_LENGTHS
    ids = torch.randint(vocabulary, (1, regions, longest), generator=generator)
    lengths = torch.randint(shortest, longest + 1, (1, regions, 1), generator=generator)
    return ids.where(torch.arange(longest) < lengths, -100).to(device)


@contextmanager
def saved_bytes(model: torch.nn.Module) -> Iterator[list[int]]:
    """Count what autograd keeps inside, in a list of one: each storage once, the model's own weights not at all."""
    known = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict(keep_vars=True).values()}
    total = [0]

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # What is kept stays alive until the backward, so that no address comes twice for two storages.
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        yield total


def training_step(
    model: ScaForConditionalGeneration, optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor]
) -> Step:
    """One step; `loss` runs the forward."""
    optimizer.zero_grad()
    with saved_bytes(model) as saved:
        value = loss()
    value.backward()
    optimizer.step()
    gradients = {name: p.grad for name, p in model.mixer.named_parameters()}
    return Step(value.detach(), saved[0], gradients)


def training_calls(
    size: Size, device: torch.device, dtype: torch.dtype = torch.float32
) -> dict[str, Callable[[], Step]]:
    """The steps that are compared; all of them train the same mixer, at a rate of 0, so that it stays as it is."""
    model = build_model(size, device).to(dtype).train()
    model.config.label_smoothing = LABEL_SMOOTHING
    optimizer = torch.optim.AdamW(model.mixer.parameters(), lr=0.0)
    live = {"pixel_values": random_pixels(size, device).to(dtype)}
    cached = {"image_embeddings": model.get_image_embeddings(**live)}
    boxes = random_boxes(size.trained, size.image_size, device)
    labels = random_labels(size.trained, model.config.text_config.vocab_size, device)

    def ours(images: dict[str, torch.Tensor]) -> torch.Tensor:
        text = {"input_ids": labels.clamp(min=0), "attention_mask": (labels >= 0).long(), "labels": labels}
        return model(**images, input_boxes=boxes, **text).loss

    def plain(attn_implementation: str) -> Callable[[], torch.Tensor]:
        module = PlainSca(model, attn_implementation)
        return lambda: module.caption_loss(live, boxes, labels, LABEL_SMOOTHING)

    losses = {
        "plain-eager": plain("eager"),
        "plain-sdpa": plain("sdpa"),
        "ours": lambda: ours(live),
        "ours, cached": lambda: ours(cached),
    }
    return {name: partial(training_step, model, optimizer, loss) for name, loss in losses.items()}


def bench_training(size: Size, repeats: int, device: torch.device, bounded: bool) -> bool:
    """Time, saved activations and gradients of a step; small shapes are not `bounded` in what they gain."""
    seconds, steps = interleaved(training_calls(size, device), repeats, device)
    gains = {name: seconds["plain-eager"] / spent for name, spent in seconds.items()}
    ratios = {name: step.saved / steps["plain-eager"].saved for name, step in steps.items()}
    print(
        f"\ntraining step, {size.image_size} px, {size.layers} mixer layers, {size.trained} boxes; beside plain-eager:"
    )
    for name, spent in seconds.items():
        saved = f"{steps[name].saved / 2**20:6.0f} MiB saved ({ratios[name]:.2f} x)"
        print(f"  {name:12} {spent:9.3f} s ({gains[name]:.2f} x as fast)   {saved}", flush=True)
    exact = {name: call() for name, call in training_calls(QUICK, device, torch.float64).items()}
    same = [same_step(name, exact["ours"], step) for name, step in exact.items() if name != "ours"]
    if not bounded:
        return all(same)
    print(f"  right: {LIVE_GAIN} x as fast, {CACHED_GAIN} x with cached embeddings, {SAVED_RATIO} x saved; or better")
    fast = gains["ours"] >= LIVE_GAIN and gains["ours, cached"] >= CACHED_GAIN
    return all(same) and fast and ratios["ours"] <= SAVED_RATIO


def same_step(name: str, ours: Step, theirs: Step) -> bool:
    """Print the differences in loss and gradients; are they within the tolerance?"""
    good = agree(f"loss, {name}", ours.loss, theirs.loss)
    mine, other = (torch.cat([x.flatten() for x in step.gradients.values()]) for step in (ours, theirs))
    difference = ((mine - other).norm() / other.norm()).item()
    print(f"  gradients, {name}: within {difference:.1e} of their norm")
    return good and difference <= GRADIENT_TOLERANCE
