"""Load a folder in three lines where this package cannot be imported, and say what it says of a probe image.

    python -P src/sca_hf/hub/probe.py FOLDER RESULT.json

`sca-hf publish` runs it as a program of its own before it uploads anything; what is uploaded is what was loaded here.
"""

import json
import sys
from pathlib import Path
from typing import Any


def describe_probe(model: Any, processor: Any) -> dict[str, Any]:
    """Ids and captions of four regions, a prompt of each kind, on an image that is the same everywhere."""
    import numpy as np
    from PIL import Image

    rows, columns = np.mgrid[0:96, 0:128]
    pixels = np.stack([rows * 2, columns * 2, (rows * columns) % 251], axis=-1).astype(np.uint8)
    pixels[20:60, 30:90] = (230, 40, 30)
    mask = np.zeros((96, 128), dtype=bool)
    mask[40:90, 10:70] = True
    inputs = processor(
        Image.fromarray(pixels),
        input_boxes=[[[30, 20, 90, 60], None, None, [0, 0, 128, 96]]],
        input_points=[[None, [[60, 40]], None, None]],
        input_labels=[[None, [1], None, None]],
        input_masks=[[None, None, mask, None]],
        return_tensors="pt",
    )
    outputs = model.generate(**inputs.to(model.device, model.dtype), return_dict_in_generate=True)
    return {"ids": outputs.sequences.tolist(), "captions": processor.batch_decode(outputs)}


def main(folder: str, result: str) -> None:
    """Load, describe, write."""
    sys.modules["sca_hf"] = None  # type: ignore[assignment]  # an import of it fails from here on

    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    found = {**describe_probe(model, processor), "module": type(model).__module__}
    Path(result).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
