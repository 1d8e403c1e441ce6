"""Region records of cached scenes with cached image embeddings: what the caption stages train on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import SamModel

from sca_hf.data.scenes import scene_seed
from sca_hf.files import replacing

from .prompt_sampling import IMAGE_MEAN, IMAGE_STD
from .scene_cache import SceneArrays


def cache_embeddings(sam: SamModel, scenes: SceneArrays, path: Path, batch_size: int = 16) -> np.ndarray:
    """Encodes every scene once; returns (n, C, h, w) float16, memory-mapped from `path`."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            rows = None
            for start in range(0, len(scenes), batch_size):
                pixels = torch.from_numpy(np.array(scenes.pixels[start : start + batch_size])).permute(0, 3, 1, 2)
                pixels = (pixels / 255 - IMAGE_MEAN) / IMAGE_STD
                with torch.inference_mode():
                    encoded = sam.vision_encoder(pixels).last_hidden_state.half().numpy()
                if rows is None:
                    shape = (len(scenes), *encoded.shape[1:])
                    rows = np.lib.format.open_memmap(draft, "w+", np.float16, shape)
                rows[start : start + len(encoded)] = encoded
            del rows
    return np.load(path, mmap_mode="r")


class SceneRecords(torch.utils.data.Dataset):
    """Region records (see `data.region`) of scenes, with an `image_embedding` in place of `image`.

    Scenes without a describable object are left out. Masks are (H, W) bool rather than RLE, which the collator takes
    as well.
    """

    def __init__(self, scenes: SceneArrays, embeddings: np.ndarray, split: str) -> None:
        self.scenes, self.embeddings, self.split = scenes, embeddings, split
        self.usable = [index for index, text in enumerate(scenes.texts) if '"describable": true' in text]

    def __len__(self) -> int:
        return len(self.usable)

    def __getitem__(self, item: int) -> dict[str, Any]:
        index = self.usable[item]
        objects = json.loads(self.scenes.texts[index])
        height, width = self.scenes.labels.shape[1:]
        seed = scene_seed(self.split, index)
        return {
            "image_embedding": torch.from_numpy(self.embeddings[index].copy()),
            "image_id": f"scene-{seed}",
            "width": width,
            "height": height,
            "task": "caption",
            "regions": [
                {
                    "region_id": f"{seed}-{k}",
                    "box": self.scenes.boxes[index, k].tolist(),
                    "mask": self.scenes.labels[index] == k + 1,
                    "captions": obj["captions"],
                    "category": obj["category"],
                }
                for k, obj in enumerate(objects)
                if obj["describable"]
            ],
        }


@dataclass(frozen=True)
class RecognitionShare:
    """Has a share of the records answered with category names, for `SeededDataset`."""

    share: float

    def __call__(self, record: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**record, "task": "recognition" if rng.random() < self.share else "caption"}
