"""Sets of photographs as data/ has them: small, of smooth noise, each picture with one true mask."""

import json

import numpy as np
from PIL import Image


def picture(number):
    """A photograph of its own: smooth noise."""
    small = np.random.default_rng(number).integers(0, 255, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize((64, 48), Image.Resampling.BICUBIC)


def annotation(number, image, category=1):
    polygon = [10, 10, 40, 10, 40, 30, 10, 30]
    row = {"id": number, "image_id": image, "category_id": category, "bbox": [10, 10, 30, 20], "area": 600}
    return {**row, "segmentation": [polygon], "iscrowd": 0}


def make_set(folder, names, licenses, category="dog", first=0):
    (folder / "images").mkdir(parents=True)
    for number, name in enumerate(names):
        picture(first + number).save(folder / "images" / name, quality=95)
    images = [
        {"id": number, "file_name": name, "width": 64, "height": 48, "license": licenses[number % len(licenses)]}
        | {"flickr_url": f"http://farm1.static.flickr.com/1/{100 + number}_abc.jpg"}
        for number, name in enumerate(names)
    ]
    rows = [annotation(number, number) for number in range(len(names))]
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": category}]}
    (folder / "instances.json").write_text(json.dumps(content))


def make_sets(folder):
    """Three sets of 20 pictures, and a copy of one of them among the examples."""
    make_set(folder / "coco_permissive", [f"{k:06}.jpg" for k in range(20)], [4, 4, 4, 5])
    make_set(folder / "coco_permissive_2", [f"{k:06}.jpg" for k in range(100, 120)], [4], first=100)
    taco = [f"batch_1_{k:06}.jpg" for k in range(0, 40, 2)]
    make_set(folder / "taco_litter", taco, [1], "Other plastic bottle", first=200)
    (folder / "coco_permissive" / "region_descriptions.json").write_text(
        json.dumps([{"id": 1, "regions": [{"coco_ann_id": 1, "phrase": "a dog in the snow"}]}])
    )
    (folder / "photos").mkdir()
    shown = (folder / "coco_permissive" / "images" / "000002.jpg").read_bytes()
    (folder / "photos" / "dog_in_snow.jpg").write_bytes(shown)
    return folder
