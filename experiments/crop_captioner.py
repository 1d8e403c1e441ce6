"""A small GIT that has seen nothing but crops of `scenes`: what a region says without its surroundings.

    python -m experiments.crop_captioner --output runs/crop-captioner

Trains it in some minutes on one core and saves it with its processor, to be a captioner of `sca-hf predict`:
`--captioner crop:model=runs/crop-captioner,area=box`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import (
    AutoConfig,
    CLIPImageProcessorPil,
    GitForCausalLM,
    GitProcessor,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from sca_hf.data.scenes import scenes
from sca_hf.evaluation.captioners.crop_captioner import CropStyle, cut_region


SIDE, PATCH, WIDTH = 40, 8, 96
SCENES, STEPS, BATCH = 2_000, 1_500, 64
RATE, WARMUP = 1.5e-3, 100


def crops_of_scenes(number: int) -> tuple[list[Image.Image], list[list[str]]]:
    """Returns the crop of every describable object of the first training scenes, and its captions."""
    crops, captions = [], []
    for scene in tqdm(scenes("train", number), desc="scenes", total=number):
        picture = scene.to_pil()
        for thing in scene.objects:
            if thing.describable:
                crops.append(cut_region(picture, None, list(thing.box), CropStyle(area="box"))[0])
                captions.append(thing.captions)
    return crops, captions


def build_processor(texts: list[str]) -> GitProcessor:
    """A tokenizer of whole words, and CLIP's image processor without cropping."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece(prefix="##")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    pair = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pair)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    size = {"height": SIDE, "width": SIDE}
    return GitProcessor(CLIPImageProcessorPil(size=size, do_center_crop=False), fast)


def build_model(processor: GitProcessor) -> GitForCausalLM:
    """A GIT of two and two layers, from scratch."""
    layers = {"hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_attention_heads": 4, "num_hidden_layers": 2}
    tokenizer = processor.tokenizer
    config = AutoConfig.for_model(
        "git",
        vision_config={**layers, "image_size": SIDE, "patch_size": PATCH},
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=64,
        **layers,
    )
    return GitForCausalLM(config)


def train(seed: int = 0) -> tuple[GitForCausalLM, GitProcessor]:
    """Trains for a fixed number of steps."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    crops, captions = crops_of_scenes(SCENES)
    processor = build_processor([text for texts in captions for text in texts])
    pixels = processor.image_processor(crops, return_tensors="pt")["pixel_values"]
    model = build_model(processor).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS)
    with tqdm(total=STEPS, desc="steps") as bar:
        for _ in range(STEPS):
            rows = rng.integers(len(crops), size=BATCH)
            texts = [captions[row][rng.integers(len(captions[row]))] for row in rows]
            inputs = processor.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
            labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
            loss = model(pixel_values=pixels[rows], labels=labels, **inputs).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{float(loss):.3f}")
            bar.update()
    return model.eval(), processor


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder of the model")
    options = parser.parse_args()
    make(Path(options.output))


def make(folder: Path) -> None:
    """Trains and saves, unless that is done."""
    if (folder / "config.json").is_file():
        return
    start = time.perf_counter()
    model, processor = train()
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters:,} parameters, {time.perf_counter() - start:.0f} s: {folder}")


if __name__ == "__main__":
    main()
