"""Region objects, odd ones above all, get the same verdict and the same words from every door that takes them.

The doors are the command line's regions file, the HTTP interface, the page and the endpoint's handler.
"""

import base64
import importlib.util
import io
import json
from importlib import resources

import numpy as np
import pytest

from sca_hf import captioning
from sca_hf.cli import main
from sca_hf.model_names import resolve_model
from sca_hf.processing.masks_sca import encode_rle
from sca_hf.processing.region_prompts_sca import MAX_POINTS
from sca_hf.testing import tiny_image


pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("gradio", reason="the extra demo is not installed")

from fastapi.testclient import TestClient

from sca_hf.demo.blocks import PageAnswers
from sca_hf.serving.api import create_app


HEIGHT, WIDTH = 60, 80
NAN, INFINITY = float("nan"), float("inf")
BOX = [5, 5, 40, 30]
PIXELS = np.zeros((HEIGHT, WIDTH), bool)
PIXELS[20:40, 30:60] = True
MASK = encode_rle(PIXELS)
# 20 of 60 rows in 30 of 80 columns; an RLE runs down the columns.
COUNTS = [30 * HEIGHT + 20, *[20, 40] * 29, 20, 20 * HEIGHT + 20]


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def mask(**changes):
    return {"mask": {**MASK, **changes}}


ACCEPTED = {
    "a box": {"box": BOX},
    "a box and no points": {"box": BOX, "points": []},
    "a box and nulls": {"box": BOX, "points": None, "labels": None, "mask": None},
    "no points and no labels": {"box": BOX, "points": [], "labels": []},
    "a box of the whole picture": {"box": [0, 0, WIDTH, HEIGHT]},
    "a box within rounding of the edge": {"box": [0, 0, WIDTH + 0.0005, HEIGHT]},
    "points without labels": {"points": [[30, 20], [35, 25]]},
    "points with labels that are null": {"points": [[30, 20]], "labels": None},
    "labels that are 1.0": {"points": [[30, 20], [2, 2]], "labels": [1.0, 0.0]},
    "a box without a point": {"box": BOX, "points": [[6, 6]], "labels": [0]},
    "a mask without a point": {**mask(), "points": [[2, 2]], "labels": [0]},
    "a mask": mask(),
    "a mask of counts": mask(counts=COUNTS),
    "all kinds": {"box": BOX, "points": [[30, 20]], "labels": [1], **mask()},
    "keys of one's own": {"box": BOX, "id": 7, "category": "dog", "captions": ["a dog"], "": None},
    "a record fed back": {
        "box": BOX,
        "caption": "a dog",
        "score": -0.1,
        "iou": 0.9,
        "image": "a.png",
        "input": {"x": 1},
    },
    "a tree of one's own": {"box": BOX, "attributes": {"size": ["small", {"of": 3}]}, "unicode": "é 🐕"},
    "an id of a mask": {"box": BOX, "mask_id": 3, "annotation_id": 4},
}
REFUSED = {
    "a number": (3, "regions[0] is 3, expected an object"),
    "null": (None, "expected an object"),
    "a list": (BOX, "expected an object"),
    "nothing": ({}, "regions[0] has no prompt; give it a box, points or a mask."),
    "nulls": ({"box": None, "points": [], "labels": [], "mask": None}, "has no prompt"),
    "only keys of one's own": ({"category": "dog"}, "has no prompt"),
    "a box of three": (
        {"box": [1, 2, 3]},
        "regions[0].box is [1, 2, 3], expected four finite numbers [x1, y1, x2, y2]",
    ),
    "a box of strings": ({"box": ["1", "2", "3", "4"]}, "four finite numbers"),
    "a box of true": ({"box": [True, 2, 30, 40]}, "four finite numbers"),
    "a box of nulls": ({"box": [None] * 4}, "four finite numbers"),
    "a box that is a text": ({"box": "1,2,3,4"}, "four finite numbers"),
    "a box that is an object": ({"box": {"x1": 1, "y1": 2, "x2": 3, "y2": 4}}, "four finite numbers"),
    "a box of NaN": ({"box": [NAN, 2, 30, 40]}, "four finite numbers"),
    "an infinite box": ({"box": [0, 0, INFINITY, 40]}, "four finite numbers"),
    "a box above every float": ({"box": [0, 0, 10**400, 40]}, "four finite numbers"),
    "an inverted box": ({"box": [60, 50, 10, 10]}, "is inverted"),
    "a box without area": ({"box": [10, 10, 10, 40]}, "has no area"),
    "a box in fractions": ({"box": [0.1, 0.2, 0.6, 0.9]}, "these look like fractions of the sides (0 to 1)"),
    "a box outside": ({"box": [0, 0, 900, 40]}, "reaches outside the image of 80 x 60"),
    "points that are one": ({"points": [30, 20]}, "regions[0].points[0] is 30, expected two finite numbers [x, y]"),
    "points that are an object": ({"points": {"x": 30}}, "expected a list of points"),
    "a point of three": ({"points": [[1, 2], [30, 20, 1]]}, "regions[0].points[1] is [30, 20, 1]"),
    "a point of words": ({"points": [["a", "b"]]}, "two finite numbers"),
    "a point that is null": ({"points": [None]}, "two finite numbers"),
    "a point of NaN": ({"points": [[NAN, 4]]}, "two finite numbers"),
    "a point outside": ({"points": [[30, 20], [5000, 4]]}, "point 1, [5000, 4], lies outside the image of 80 x 60"),
    "many points": ({"points": [[1, 1]] * (MAX_POINTS + 1)}, f"the limit is {MAX_POINTS}"),
    "only points outside": ({"points": [[30, 20]], "labels": [0]}, "has only points outside"),
    "labels without points": ({"box": BOX, "labels": [1]}, "has labels without points"),
    "too few labels": ({"points": [[1, 1], [2, 2]], "labels": [1]}, "for each of 2 point(s)"),
    "no labels for a point": ({"points": [[1, 1]], "labels": []}, "for each of 1 point(s)"),
    "a label of 2": ({"points": [[1, 1]], "labels": [2]}, "expected 1 (inside) or 0 (outside)"),
    "a label of -1": ({"points": [[1, 1]], "labels": [-1]}, "expected 1 (inside) or 0 (outside)"),
    "a label of true": ({"points": [[1, 1]], "labels": [True]}, "expected 1 (inside) or 0 (outside)"),
    "a label of text": ({"points": [[1, 1]], "labels": ["1"]}, "expected 1 (inside) or 0 (outside)"),
    "a label that is no list": ({"points": [[1, 1]], "labels": 1}, "expected 1 (inside) or 0 (outside)"),
    "a mask of another size": (mask(size=[9, 9]), "regions[0].mask has the size [9, 9], the image [60, 80]"),
    "a mask the other way round": (mask(size=[WIDTH, HEIGHT]), "has the size [80, 60], the image [60, 80]"),
    "a mask that claims much": (mask(size=[100_000, 100_000], counts=[0, 10**10]), "has the size"),
    "a mask that is a list": ({"mask": [[0, 1]]}, 'expected a COCO RLE {"size": [height, width], "counts": ...}'),
    "a mask that is true": ({"mask": True}, "expected a COCO RLE"),
    "a mask without counts": ({"mask": {"size": [HEIGHT, WIDTH]}}, "expected a COCO RLE"),
    "a mask with another key": (mask(order="C"), "expected a COCO RLE"),
    "a mask of broken counts": (mask(counts=[0.5, HEIGHT * WIDTH - 0.5]), "expected a COCO RLE"),
    "a mask of nested counts": (mask(counts=[[HEIGHT * WIDTH]]), "expected a COCO RLE"),
    "a mask of too few pixels": (mask(counts=[1, 3]), "the RLE counts cover 4 pixels"),
    "a mask of negative counts": (mask(counts=[-5, HEIGHT * WIDTH + 5]), "the RLE counts cover"),
    "a mask of nonsense": (mask(counts="\x00\xff"), "not COCO's compressed form"),
    "a mask cut short": (mask(counts=MASK["counts"][:-1]), "RLE counts"),
    "a mask of endless counts": (mask(counts=[0] * 20_000), "more than a mask of its size can need"),
    "an empty mask": (mask(counts=[HEIGHT * WIDTH]), "regions[0].mask is empty"),
    "bbox": ({"bbox": BOX}, "the key 'bbox', which looks like `box`; write `box`: [x1, y1, x2, y2]"),
    "boxes": ({"boxes": [BOX]}, "write `box`"),
    "Box": ({"Box": BOX, "points": [[1, 1]]}, "write `box`"),
    "input_boxes": ({"input_boxes": [BOX], "points": [[1, 1]]}, "write `box`"),
    "point": ({"box": BOX, "point": [1, 1]}, "write `points`"),
    "point_coords": ({"box": BOX, "point_coords": [[1, 1]]}, "write `points`"),
    "pionts": ({"box": BOX, "pionts": [[1, 1]]}, "write `points`"),
    "label": ({"points": [[1, 1]], "label": 0}, "write `labels`"),
    "segmentation": ({"box": BOX, "segmentation": MASK}, "write `mask`"),
    "masks": ({"box": BOX, "masks": [MASK]}, "write `mask`"),
    "maks": ({"box": BOX, "maks": MASK}, "write `mask`"),
    "NaN of one's own": ({"box": BOX, "weight": NAN}, "whose value is not JSON"),
    "an unpaired surrogate": ({"box": BOX, "name": "\ud800"}, "whose value is not JSON"),
    "a novel of one's own": ({"box": BOX, "text": "x" * 70_000}, "the limit is 65536"),
    "a deep tree of one's own": ({"box": BOX, "tree": nested(50)}, "nested deeper than 32 levels"),
}


class Doors:
    """The four ways to hand in a region, each through its real entry; the answer is a record, or an error's text."""

    def __init__(self, folder, capsys, engine, handler):
        self.folder, self.capsys, self.page, self.handler = folder, capsys, PageAnswers(engine), handler
        self.client = TestClient(create_app(engine))
        buffer = io.BytesIO()
        tiny_image(3, (WIDTH, HEIGHT)).save(buffer, "PNG")
        self.picture = base64.b64encode(buffer.getvalue()).decode()
        (folder / "picture.png").write_bytes(buffer.getvalue())

    def file(self, text):
        regions = self.folder / "regions.json"
        regions.write_text(f"[{text}]")
        self.capsys.readouterr()
        picture = str(self.folder / "picture.png")
        code = main(["caption", picture, "--model", "sca-tiny", "--regions", str(regions), "--json", "-", "--quiet"])
        shown = self.capsys.readouterr()
        if code:
            whose = f"failed: {picture}: " if code == 1 else "error: "  # of the image, or of the file alone
            return shown.err.removeprefix(f"sca-hf caption: {whose}{regions}: ").rstrip("\n")
        return json.loads(shown.out)[0]

    def http(self, text):
        body = f'{{"image": "{self.picture}", "regions": [{text}]}}'
        answer = self.client.post("/v1/caption", content=body, headers={"Content-Type": "application/json"})
        if answer.status_code != 200:
            assert answer.status_code == 422
            return answer.json()["error"]
        return answer.json()["regions"][0]

    def shown(self, text):
        image = self.page.open_picture({"data": self.picture})["image_id"]
        answer = self.page.describe(json.loads(f'{{"image_id": "{image}", "region": {text}}}'))
        return answer.get("error") or answer

    def endpoint(self, text):
        try:
            return self.handler(json.loads(f'{{"inputs": {{"image": "{self.picture}", "regions": [{text}]}}}}'))[0]
        except ValueError as error:
            return str(error)

    def answers(self, region):
        text = json.dumps(region)
        return {door: getattr(self, door)(text) for door in ("file", "http", "shown", "endpoint")}


@pytest.fixture(scope="module")
def handler():
    """Made as an endpoint's server makes it, from the file and the repository's folder."""
    path = resources.files("sca_hf") / "hub" / "templates" / "handler.py"
    spec = importlib.util.spec_from_file_location("handler", str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(resolve_model("sca-tiny")))


@pytest.fixture
def doors(tmp_path, capsys, engine, handler, monkeypatch):
    # The command would load the model for every region.
    loaded = engine.model()  # now: its progress bar is none of the command's words
    monkeypatch.setattr(captioning, "load", lambda *_: loaded)
    return Doors(tmp_path, capsys, engine, handler)


@pytest.mark.parametrize("kind", REFUSED)
def test_an_odd_region_is_refused_everywhere_in_the_same_words(kind, doors):
    region, expected = REFUSED[kind]
    answers = doors.answers(region)
    assert len(set(map(str, answers.values()))) == 1, answers
    assert answers["file"].startswith("regions[0]") and expected in answers["file"] and len(answers["file"]) < 400


@pytest.mark.parametrize("kind", ACCEPTED)
def test_a_region_is_accepted_everywhere_with_the_same_caption_and_its_own_keys(kind, doors):
    answers = doors.answers(ACCEPTED[kind])
    assert len({answer["caption"] for answer in answers.values()}) == 1, answers
    own = {name: value for name, value in ACCEPTED[kind].items() if name not in ("box", "points", "labels", "mask")}
    taken = {name: value for name, value in own.items() if name in ("caption", "score", "iou", "image", "input")}
    for answer in answers.values():
        assert {name: answer[name] for name in own.keys() - taken.keys()} == {
            name: value for name, value in own.items() if name not in taken
        }
        assert answer.get("input", {}) == taken


def test_only_a_regions_file_may_name_a_file_as_a_mask(doors):
    np.save(doors.folder / "mask.npy", PIXELS)
    by_name, by_value = doors.answers({"mask": "mask.npy"}), doors.answers(mask())
    assert by_name.pop("file")["caption"] == by_value["file"]["caption"]
    assert set(by_name.values()) == {
        'regions[0].mask is \'mask.npy\', expected a COCO RLE {"size": [height, width], "counts": ...}.'
    }


def test_an_error_names_the_place(doors):
    text = json.dumps({"box": BOX}) + ', {"points": [[1, 1], [1, "a"]]}'
    for answer in (doors.file(text), doors.http(text), doors.endpoint(text)):
        assert answer == "regions[1].points[1] is [1, 'a'], expected two finite numbers [x, y]."


@pytest.mark.parametrize("values", [[], {}, "all", 3])
def test_what_is_not_a_list_of_regions_is_refused_in_the_same_words(values, doors):
    body = {"image": doors.picture, "regions": values}
    answer = doors.client.post("/v1/caption", json=body)
    assert answer.status_code == 422
    with pytest.raises(ValueError, match="regions is ") as error:
        doors.handler({"inputs": body})
    assert answer.json()["error"] == str(error.value)
