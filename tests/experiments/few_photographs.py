"""A handful of the real pictures, as the folder of all sets has them: enough for the road from parts to a report."""

import json
import shutil

from PIL import Image


VOC = ("playing_cards_voc", "road_signs_voc", "blood_cells_voc")
COCO = {"coco_permissive": 8, "coco_permissive_2": 8, "taco_litter": 8, "dates_figs_nuts": 5, "aquarium_boxes": 6}


def copy_few(source, target):
    """Copies a few pictures of every set below `source`, small, those with the fewest regions first."""
    for name, count in COCO.items():
        content = json.loads((source / name / "instances.json").read_text())
        regions = {row["id"]: [] for row in content["images"]}
        for row in content["annotations"]:
            regions[row["image_id"]].append(row)
        usable = [row for row in content["images"] if row.get("license") != 5 and regions[row["id"]]]
        few = sorted(usable, key=lambda row: (len(regions[row["id"]]), str(row["file_name"])))[:count]
        (target / name / "images").mkdir(parents=True)
        for row in few:
            shutil.copy(source / name / "images" / row["file_name"], target / name / "images" / row["file_name"])
        rows = [region for row in few for region in regions[row["id"]]]
        (target / name / "instances.json").write_text(json.dumps({**content, "images": few, "annotations": rows}))
    described = "coco_permissive/region_descriptions.json"
    shutil.copy(source / described, target / described)
    for name in VOC:
        for folder in ("Annotations", "images"):
            (target / name / folder).mkdir(parents=True)
        for path in sorted((source / name / "Annotations").glob("*.xml"), key=lambda path: path.stat().st_size)[:5]:
            shutil.copy(path, target / name / "Annotations")
            picture = next((source / name / "images").glob(f"{path.stem}.*"))
            shutil.copy(picture, target / name / "images")
    (target / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(target / "photos" / "none.jpg")
    return target
