"""A small valid data set in every format: two pictures with two regions each, where the format has room for them."""

import io
import json
import pickle
import tarfile

import datasets
import pyarrow
from PIL import Image
from pyarrow import parquet

from sca_hf.data.loading import READERS, RecordSource
from sca_hf.data.read_report import ReadReport
from sca_hf.data.readers.label_studio import encode_brush
from sca_hf.processing.masks_sca import encode_rle


SIZE = (40, 30)
BOX = [5, 6, 10, 12]
POLYGON = [5, 6, 15, 6, 15, 18, 5, 18]
# What the tools of the exporters write, read by the readers of the format itself.
SAME = {"cvat": "coco", "roboflow": "coco", "fiftyone": "coco", "via": "coco"}


def mask():
    import numpy as np

    covered = np.zeros(SIZE[::-1], bool)
    covered[6:18, 5:15] = True
    return covered


def pictures(folder, names=("1.jpg", "2.jpg")):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", SIZE, (200, 30, 30)).save(folder / name)


def dump(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def coco_content(**more):
    rows = [
        {
            "id": 10 * image + number,
            "image_id": image,
            "category_id": 1,
            "bbox": BOX,
            "area": 120.0,
            "iscrowd": 0,
            "segmentation": [POLYGON] if number else encode_rle(mask()),
            **more,
        }
        for image in (1, 2)
        for number in (0, 1)
    ]
    images = [
        {"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 30, "coco_url": f"x/y/{i}.jpg"} for i in (1, 2)
    ]
    return {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cat"}]}


def coco(folder, **more):
    pictures(folder)
    dump(folder / "a.json", coco_content(**more))
    return {"annotations": folder / "a.json", "images": folder}


def lvis(folder):
    options = coco(folder)
    pictures(folder / "y")
    return options


def coco_captions(folder):
    return coco(folder, caption="a cat")


def sbu(folder):
    pictures(folder)
    dump(folder / "a.json", [{"image": f"{i}.jpg", "caption": "a cat"} for i in (1, 2)])
    return {"annotations": folder / "a.json", "images": folder}


def sa1b(folder):
    pictures(folder, ("sa_1.jpg", "sa_2.jpg"))
    rows = ["image_id\tregion_id\tcaption"]
    for image in (1, 2):
        keys = [10 * image, 10 * image + 1]
        annotations = [{"id": k, "bbox": BOX, "area": 120, "segmentation": encode_rle(mask())} for k in keys]
        dump(folder / f"sa_{image}.json", {"image": {"width": 40, "height": 30}, "annotations": annotations})
        rows += [f"sa_{image}\t{key}\ta cat" for key in keys]
    (folder / "captions.tsv").write_text("\n".join(rows) + "\n")
    return {"images": folder, "captions": folder / "captions.tsv"}


def voc(folder):
    pictures(folder)
    box = "<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>15</xmax><ymax>18</ymax></bndbox>"
    item = f"<object><name>cat</name><difficult>0</difficult>{box}</object>"
    size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
    for image in (1, 2):
        text = f"<annotation><filename>{image}.jpg</filename>{size}{item}{item}</annotation>"
        (folder / f"{image}.xml").write_text(text)
    return {"root": folder}


def yolo(folder):
    pictures(folder / "images")
    (folder / "labels").mkdir()
    for image in (1, 2):
        polygon = " ".join(f"{value / SIZE[i % 2]:.4f}" for i, value in enumerate(POLYGON))
        (folder / "labels" / f"{image}.txt").write_text(f"0 0.25 0.4 0.25 0.4\n0 {polygon}\n")
    (folder / "data.yaml").write_text("path: .\ntrain: images\nnc: 1\nnames: [cat]\n")
    return {"root": folder, "split": "train"}


def label_studio(folder):
    pictures(folder)
    box = {"x": 25, "y": 20, "width": 50, "height": 60, "rotation": 0, "rectanglelabels": ["cat"]}
    brush = {"format": "rle", "rle": encode_brush(mask()), "brushlabels": ["cat"]}
    shared = {"to_name": "image", "original_width": 40, "original_height": 30}
    tasks = [
        {
            "id": image,
            "data": {"image": f"/data/upload/3/{image}.jpg"},
            "annotations": [
                {
                    "id": image,
                    "result": [
                        {"id": "r1", "type": "rectanglelabels", "from_name": "label", "value": box, **shared},
                        {"id": "r1", "type": "textarea", "from_name": "text", "value": {"text": ["a cat"]}, **shared},
                        {"id": "r2", "type": "brushlabels", "from_name": "brush", "value": brush, **shared},
                    ],
                }
            ],
        }
        for image in (1, 2)
    ]
    dump(folder / "a.json", tasks)
    return {"annotations": folder / "a.json"}


def labelme(folder):
    pictures(folder)
    pairs = list(zip(POLYGON[::2], POLYGON[1::2], strict=True))
    shapes = [
        {"label": "cat", "shape_type": "polygon", "points": pairs, "group_id": None, "description": "a cat"},
        {"label": "cat", "shape_type": "rectangle", "points": [[5, 6], [15, 18]], "group_id": None},
        {"label": "cat", "shape_type": "circle", "points": [[15, 15], [20, 15]], "group_id": 3},
    ]
    for image in (1, 2):
        content = {"imagePath": f"{image}.jpg", "imageWidth": 40, "imageHeight": 30, "shapes": shapes}
        dump(folder / f"{image}.json", content)
    return {"root": folder}


def visual_genome(folder):
    pictures(folder / "VG_100K")
    images = [{"image_id": i, "url": f"https://x/VG_100K/{i}.jpg", "width": 40, "height": 30} for i in (1, 2)]
    place = dict(zip(("x", "y", "width", "height"), BOX, strict=True))
    rows = [
        {"id": i, "regions": [{"region_id": 10 * i + n, "image_id": i, "phrase": "a cat", **place} for n in (0, 1)]}
        for i in (1, 2)
    ]
    dump(folder / "image_data.json", images)
    dump(folder / "region_descriptions.json", rows)
    return {"root": folder}


def multilingual_visual_genome(folder):
    pictures(folder / "hindi-visual-genome-test.images")
    place = "\t".join(map(str, BOX))
    lines = [f"{image}\t{place}\ta cat\tएक बिल्ली\n" for image in (1, 1, 2, 2)]
    (folder / "hindi-visual-genome-test.txt").write_text("".join(lines), encoding="utf-8")
    return {"root": folder, "language": "hi", "split": "test"}


def grit(folder):
    return coco(folder, caption="a cat")


def refcoco(folder):
    pictures(folder)
    dump(folder / "instances.json", coco_content())
    refs = [
        {
            "ref_id": key,
            "ann_id": key,
            "image_id": key // 10,
            "split": "train",
            "sentences": [{"sent": "a", "raw": "a"}],
        }
        for key in (10, 11, 20, 21)
    ]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    return {"root": folder, "split_by": "unc", "split": "train", "images": folder}


def records():
    region = {"box": [5, 6, 15, 18], "captions": ["a cat"], "category": "cat", "mask": encode_rle(mask())}
    points = {"points": [[7.0, 8.0], [20.0, 20.0]], "labels": [1, 0]}
    return [
        {
            "image": f"{i}.jpg",
            "image_id": str(i),
            "width": 40,
            "height": 30,
            "task": "caption",
            "regions": [{"region_id": "a", **region}, {"region_id": "b", **region, **points}],
        }
        for i in (1, 2)
    ]


def jsonl(folder):
    pictures(folder)
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records()))
    return {"path": folder / "a.jsonl"}


def parquet_file(folder):
    pictures(folder)
    parquet.write_table(pyarrow.Table.from_pylist(records()), folder / "a.parquet")
    return {"path": folder / "a.parquet"}


def hub(folder):
    file = io.BytesIO()
    Image.new("RGB", SIZE).save(file, "png")
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"image": {"path": None, "bytes": file.getvalue()}, "box": [[5, 6, 15, 18]] * 2, "text": ["a cat"] * 2}
    ] * 2
    kinds = {"image": datasets.Image(), "box": datasets.List(datasets.List(datasets.Value("float32")))}
    features = datasets.Features({**kinds, "text": datasets.List(datasets.Value("string"))})
    datasets.Dataset.from_list(rows, features).to_parquet(folder / "a.parquet")
    columns = {"image": "image", "boxes": "box", "captions": "text"}
    return {"path": "parquet", "data_files": str(folder / "a.parquet"), "columns": columns}


def cvat(folder):
    pictures(folder / "images")
    dump(folder / "annotations" / "instances_default.json", coco_content())
    return {"root": folder}


def roboflow(folder):
    pictures(folder / "train")
    dump(folder / "train" / "_annotations.coco.json", coco_content())
    return {"root": folder}


def fiftyone(folder):
    pictures(folder / "data")
    dump(folder / "labels.json", coco_content())
    return {"root": folder}


def via(folder):
    pictures(folder)
    dump(folder / "a.json", coco_content())
    return {"root": folder / "a.json"}


MAKERS = {
    "coco": coco,
    "lvis": lvis,
    "objects365": coco,
    "v3det": coco,
    "coco_captions": coco_captions,
    "sbu": sbu,
    "sa1b": sa1b,
    "voc": voc,
    "yolo": yolo,
    "label_studio": label_studio,
    "labelme": labelme,
    "visual_genome": visual_genome,
    "grit": grit,
    "multilingual_visual_genome": multilingual_visual_genome,
    "refcoco": refcoco,
    "jsonl": jsonl,
    "parquet": parquet_file,
    "hub": hub,
    "cvat": cvat,
    "roboflow": roboflow,
    "fiftyone": fiftyone,
    "via": via,
}
# Every door is here; scenes are drawn, not read.
assert MAKERS.keys() == READERS.keys() - {"scenes"}


def read(format, options, on_error="raise"):
    report = ReadReport()
    return list(RecordSource(format, options, on_error, keep_empty=True).records(report)), report


def tar_of(folder, name):
    """The files of a folder in a tar file beside it."""
    with tarfile.open(folder.parent / name, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    return folder.parent / name
