"""A data set of regions on disk, small enough to be predicted in a moment: what the tests of predicting share."""

import json

from sca_hf.data.scenes import render_scene
from sca_hf.processing.masks_sca import encode_rle
from sca_hf.testing import CAPTIONS, tiny_image


def write_regions(folder, images=6, scenes=False):
    """Writes pictures and `regions.jsonl`; returns its data spec. The third image has no region."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(images):
        if scenes:
            record = render_scene(20_000_000 + number).to_record()
            record.pop("image").save(folder / f"{number}.png")
        else:
            tiny_image(number).save(folder / f"{number}.png")
            record = tiny_record(number)
        rows.append({**record, "image": f"{number}.png"})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "regions.jsonl").write_text(text, encoding="utf-8")
    return {"format": "jsonl", "path": str(folder / "regions.jsonl"), "keep_empty": True}


def tiny_record(number):
    """Regions of an image of 80 x 60: as many as the number says, from none to three."""
    boxes = [[5.5, 4, 40, 30.25], [30, 20, 70, 55], [0, 0, 80, 60]]
    regions = []
    for index in range((number + 1) % 4 if number != 2 else 0):
        x0, y0, x1, y1 = (int(value) for value in boxes[index])
        regions.append(
            {
                "region_id": f"{number}-{index}",
                "box": boxes[index],
                "mask": rectangle_mask((x0 + 2, y0 + 2, x1 - 3, y1 - 3)),
                "points": [[x0 + 5.5, y0 + 6.5], [79, 59]],
                "labels": [1, 0],
                "captions": [CAPTIONS[(number + index) % 5], CAPTIONS[(number + index + 1) % 5]],
                "category": "thing",
            }
        )
    return {"image_id": f"picture {number}", "width": 80, "height": 60, "regions": regions}


def rectangle_mask(corners, size=(80, 60)):
    """The RLE of a filled rectangle, far edges exclusive."""
    import numpy as np

    mask = np.zeros(size[::-1], bool)
    mask[corners[1] : corners[3], corners[0] : corners[2]] = True
    return encode_rle(mask)
