"""Time the model against *plain*: the same weights in the library's own modules (`benchmarks/plain.py`).

    python -m benchmarks                      # all parts: as published, on CUDA where present
    python -m benchmarks --part mixer --repeats 5
    python -m benchmarks --quick              # small shapes: does it run, do the results agree?

- encoder: SAM's ViT-B on one image of 1024 px.
- mixer: hidden 256, 12 layers, 64 x 64 image tokens, 64 regions of 7 SAM tokens and 8 queries.
- decode: a GPT-2 of 124 M parameters continues 1, 8, 64 and 512 prefixes by 20 tokens.
- end-to-end: ViT-B at 1024 px and a GPT-2 of 124 M parameters, 64 boxes in one image, masks, 20 new tokens, greedy.
- memory: the peak above the weights of an end-to-end call, and without masks at 64 and 1000 regions; each in a process
  of its own.
- anything: everything in one image, 32 x 32 points, 3 beams, against encoding it for each 64 points and captioning
  all of them. One round: the plain way takes the better part of an hour on a CPU.
- training: one step of the mixer, 16 boxes in one ViT-B image, captions of 8 to 20 tokens, GPT-2 of 124 M parameters.
- dataset: many pictures on a CPU, by sca-tiny and with 48 boxes each at ViT-B shape, one by one against batches by
  workers, in elapsed time; and whether memory stays the same over 2,000 pictures.

Random weights without an end token, float32. Plain encodes the image once, repeats it for each region, runs 8 regions
at a time and calls `generate` for each 8; caption scores are off, for plain has none. Beside the times stands that of
the matrix products and convolutions alone, in the shapes of ours (benchmarks/bound.py): what is left to gain. A CPU
runs one thread and counts the CPU time of the process; rounds are interleaved, medians printed. Results that disagree,
memory that grows with the number of regions, or a training step that gains less than it should, are an error.
Gradients are compared in float64, on a small model.
"""

import argparse
import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sca_hf.modeling.generation_sca import continue_prefixes, region_chunk_size
from sca_hf.modeling.modeling_sca import ScaForConditionalGeneration

from .anything import QUICK_SURVIVORS, SURVIVORS, bench_anything
from .bound import floor
from .dataset import bench_dataset
from .measure import interleaved, peak_bytes
from .plain import CHUNK, PlainMixer, PlainSca
from .shapes import QUICK, Size, agree, build_model, random_boxes, random_pixels, report
from .training import bench_training


PARTS = ("encoder", "mixer", "decode", "end-to-end", "memory", "training", "anything", "dataset")
# How much more memory `many` regions may take, as long as the image encoder sets the peak (so not for --quick).
MEMORY_RATIO = 1.3
SAM_TOKENS = 7  # IoU, 4 masks, 2 corners of a box


def generate(
    model: ScaForConditionalGeneration, size: Size, regions: int, device: torch.device, masks: bool = True
) -> Any:
    """One call of the model, as timed."""
    return model.generate(
        pixel_values=random_pixels(size, device),
        input_boxes=random_boxes(regions, size.image_size, device),
        max_new_tokens=size.new_tokens,
        do_sample=False,
        output_masks=masks,
        output_caption_scores=False,
    )


@torch.no_grad()
def bench_mixer(size: Size, repeats: int, device: torch.device) -> bool:
    """Caption queries of all regions from their SAM tokens and image tokens."""
    mixer = build_model(size, device).mixer
    grid, width = size.image_size // 16, mixer.config.hidden_size
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(size.regions, SAM_TOKENS, width, generator=generator).to(device)
    images = torch.randn(size.regions, grid * grid, width, generator=generator).to(device)
    positions = torch.randn(1, width, grid, grid, generator=generator).to(device)

    def plain(attn_implementation: str) -> Callable[[], torch.Tensor]:
        module = PlainMixer(mixer, attn_implementation)
        parts = list(zip(tokens.split(CHUNK), images.split(CHUNK), strict=True))
        return lambda: torch.cat([module(t.unsqueeze(0), i.unsqueeze(1), positions)[0] for t, i in parts])

    def ours() -> torch.Tensor:
        chunk = region_chunk_size(grid * grid, width, images.dtype, device)
        folded = mixer.fold_positions(positions[0].flatten(1).t())
        parts = zip(tokens.split(chunk), images.split(chunk), strict=True)
        return torch.cat([mixer(t, i, folded).flatten(1, 2) for t, i in parts])

    seconds, queries = interleaved(
        {"plain-eager": plain("eager"), "plain-sdpa": plain("sdpa"), "ours": ours}, repeats, device
    )
    title = f"mixer, {size.layers} layers, {grid} x {grid} image tokens, {size.regions} regions"
    report(title, seconds, floor(ours, device))
    return all(agree(f"queries, {name}", queries["ours"], queries[name]) for name in ("plain-eager", "plain-sdpa"))


def bench_end_to_end(size: Size, repeats: int, device: torch.device) -> bool:
    """Pixels and boxes to masks and captions."""
    model = build_model(size, device)
    pixels, boxes = random_pixels(size, device), random_boxes(size.regions, size.image_size, device)
    plain = {f"plain-{name}": PlainSca(model, name) for name in ("eager", "sdpa")}
    calls: dict[str, Callable[[], Any]] = {
        name: lambda one=one: one.generate(pixels, boxes, size.new_tokens) for name, one in plain.items()
    }
    calls["ours"] = lambda: generate(model, size, size.regions, device)
    prefixes = record(model.mixer, "prefix")
    seconds, outputs = interleaved(calls, repeats, device)
    ours = outputs["ours"]
    title = f"end to end, {size.image_size} px, {size.regions} boxes, {size.new_tokens} new tokens"
    report(title, seconds, floor(calls["ours"], device))
    print(f"  {len(set(map(tuple, ours.sequences[0].tolist())))} different captions")
    good = True
    for name in plain:
        theirs = outputs[name]
        good &= agree(f"masks, {name}", ours.pred_masks, theirs.pred_masks)
        good &= agree(f"IoU, {name}", ours.iou_scores, theirs.iou_scores)
        good &= agree(f"prefix, {name}", prefixes[-1], theirs.prefix_embeds)
        same = (ours.sequences == theirs.sequences).all(dim=-1)
        print(f"  ids, {name}: {int(same.sum())} of {same.numel()} captions equal")
        good &= bool(same.all())
    return good


@torch.no_grad()
def bench_encoder(size: Size, repeats: int, device: torch.device) -> bool:
    """SAM's encoder on one image."""
    model, pixels = build_model(size, device), random_pixels(size, device)
    plain = {f"plain-{name}": PlainSca(model, name).sam for name in ("eager", "sdpa")}
    calls: dict[str, Callable[[], Any]] = {
        name: lambda sam=sam: sam.get_image_embeddings(pixels) for name, sam in plain.items()
    }
    calls["ours"] = lambda: model.get_image_embeddings(pixels)
    seconds, maps = interleaved(calls, repeats, device)
    title = f"image encoder, {size.image_size} px, {size.vision_layers} layers"
    report(title, seconds, floor(calls["ours"], device))
    return all(agree(f"embeddings, {name}", maps["ours"], maps[name]) for name in calls if name != "ours")


@torch.no_grad()
def bench_decode(size: Size, repeats: int, device: torch.device) -> bool:
    """The language model's part: prefixes to words, greedy, for few regions and many."""
    model, good = build_model(size, device), True
    config = copy.deepcopy(model.generation_config)
    config.max_new_tokens, config.do_sample = size.new_tokens, False
    length = model.mixer.config.num_caption_tokens + model.mixer.config.num_task_tokens
    for regions in (1, 8, size.regions, 8 * size.regions):
        generator = torch.Generator().manual_seed(5)
        prefixes = torch.randn(regions, 1, length, model.config.text_config.hidden_size, generator=generator)
        prefixes = prefixes.to(device)

        def plain(attn_implementation: str, rows: torch.Tensor = prefixes[:, 0]) -> Callable[[], Any]:
            language_model = PlainSca(model, attn_implementation).language_model
            return lambda: torch.cat(
                [
                    language_model.generate(
                        inputs_embeds=part,
                        attention_mask=torch.ones(part.shape[:2], dtype=torch.long, device=device),
                        max_new_tokens=size.new_tokens,
                        do_sample=False,
                    )
                    for part in rows.split(CHUNK)
                ]
            )

        def ours(rows: torch.Tensor = prefixes) -> Any:
            return continue_prefixes(model.language_model, rows, config, False, None, {})[0][:, 0]

        calls = {"plain-eager": plain("eager"), "plain-sdpa": plain("sdpa"), "ours": ours}
        seconds, ids = interleaved(calls, repeats, device)
        title = f"words, {regions} prefixes of {length}, {size.new_tokens} new tokens"
        report(title, seconds, floor(ours, device))
        same = [bool((ids[name] == ids["ours"]).all()) for name in ("plain-eager", "plain-sdpa")]
        print(f"  the same words: {all(same)}")
        good &= all(same)
    return good


def record(module: torch.nn.Module, method: str) -> list[Any]:
    """What a method of `module` returns, from now on; the last result only."""
    results: list[Any] = []
    call = getattr(module, method)

    def recorded(*arguments: Any) -> Any:
        results[:] = [call(*arguments)]
        return results[0]

    setattr(module, method, recorded)
    return results


def bench_memory(size: Size, quick: bool, device: torch.device) -> bool:
    """Peak memory above the weights, one process per figure."""
    print(f"\npeak memory above the weights, MiB ({size.image_size} px)")
    peaks = {}
    for name, regions in (
        ("plain-eager", size.regions),
        ("plain-sdpa", size.regions),
        ("ours", size.regions),
        ("ours, no masks", size.regions),
        ("ours, no masks", size.many),
    ):
        command = [sys.executable, "-m", "benchmarks", "--peak", name, str(regions), "--device", str(device)]
        # Freed memory goes back at once, so that the resident set is what is in use.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        command += ["--quick"] if quick else []
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        peaks[name, regions] = int(done.stdout)
        print(f"  {name + f', {regions} regions':32} {peaks[name, regions] / 2**20:8.0f}", flush=True)
    ratio = peaks["ours, no masks", size.many] / peaks["ours, no masks", size.regions]
    bound = "" if quick else f"; at most {MEMORY_RATIO} is right"
    print(f"  {size.many} regions need {ratio:.2f} times the memory of {size.regions}{bound}")
    return quick or ratio <= MEMORY_RATIO


def print_peak(name: str, regions: int, size: Size, device: torch.device) -> None:
    """The peak of one call, for `bench_memory`."""
    model = build_model(size, device)
    if name.startswith("plain"):
        plain = PlainSca(model, name.removeprefix("plain-"))
        pixels, boxes = random_pixels(size, device), random_boxes(regions, size.image_size, device)
        print(peak_bytes(lambda: plain.generate(pixels, boxes, size.new_tokens), device))
    else:
        print(peak_bytes(lambda: generate(model, size, regions, device, masks="no masks" not in name), device))


def cpu() -> str:
    """The CPU's name where it is told, and the instructions that torch uses on it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Speed and memory against plain modules."
    )
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; repeatable")
    parser.add_argument("--repeats", type=int, default=3, help="rounds whose median is printed (default: 3)")
    parser.add_argument("--quick", action="store_true", help="small shapes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak", nargs=2, metavar=("NAME", "REGIONS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size, device = QUICK if arguments.quick else Size(), torch.device(arguments.device)
    torch.set_num_threads(1)
    if arguments.peak:
        print_peak(arguments.peak[0], int(arguments.peak[1]), size, device)
        return 0
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cpu()}, one thread, process CPU time"
    print(f"float32, torch {torch.__version__}, {where}")
    good = True
    for part in arguments.part or PARTS:
        if part == "encoder":
            good &= bench_encoder(size, arguments.repeats, device)
        elif part == "decode":
            good &= bench_decode(size, arguments.repeats, device)
        elif part == "mixer":
            good &= bench_mixer(size, arguments.repeats, device)
        elif part == "end-to-end":
            good &= bench_end_to_end(size, arguments.repeats, device)
        elif part == "anything":
            points, survivors = (8, QUICK_SURVIVORS) if arguments.quick else (32, SURVIVORS)
            good &= bench_anything(size, points, device, not arguments.quick, survivors)
        elif part == "dataset":
            good &= bench_dataset(size, arguments.repeats, arguments.quick)
        elif part == "training":
            good &= bench_training(size, arguments.repeats, device, bounded=not arguments.quick)
        else:
            good &= bench_memory(size, arguments.quick, device)
    if not good:
        print("\nResults disagree or a bound is missed: see above.", file=sys.stderr)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
