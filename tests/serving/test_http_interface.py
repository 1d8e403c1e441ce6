"""The HTTP interface: the model's own answers, together and apart, and what is refused."""

import base64
import io
import json
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import pytest
from PIL import Image

from sca_hf.data.scenes import scenes
from sca_hf.processing.anything_settings_sca import AnythingSettings
from sca_hf.processing.masks_sca import decode_rle, encode_rle


pytest.importorskip("fastapi", reason="the extra serve is not installed")

from fastapi.testclient import TestClient

from sca_hf.captioning import load
from sca_hf.serving import Engine, Limits
from sca_hf.serving.api import create_app


SCENE = next(scenes("test", 1, 3))
BOXES = [list(one.box) for one in SCENE.objects]


def file_of(picture, format="PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format)
    return buffer.getvalue()


FILE = file_of(SCENE.to_pil())
IMAGE = base64.b64encode(FILE).decode()


@pytest.fixture(scope="module")
def engine():
    one = Engine(["sca-tiny"], device="cpu", limits=Limits(file_bytes=1 << 20, pixels=1_000_000, regions=20))
    yield one
    one.close()


@pytest.fixture(scope="module")
def client(engine):
    with TestClient(create_app(engine), raise_server_exceptions=False) as one:
        yield one


@pytest.fixture(scope="module")
def expected():
    model, processor = load("sca-tiny", device="cpu")
    return processor.batch_decode(model.generate(**processor(SCENE.to_pil(), input_boxes=[BOXES])))[0]


def post(client, address="/v1/caption", **request):
    return client.post(address, json={"image": IMAGE, **request})


def test_regions_get_what_the_model_says(client, expected):
    answer = post(client, regions=[{"box": box} for box in BOXES], all_masks=True).json()["regions"]
    assert [region["caption"] for region in answer] == expected
    for region in answer:
        assert (
            region["mask"] == max(region["masks"], key=lambda mask: mask["iou"])["mask"] and len(region["masks"]) == 3
        )
        assert decode_rle(region["mask"]).shape == SCENE.labels.shape and region["score"] < 0


def test_prompts_of_every_kind(client):
    x, y = SCENE.objects[0].point
    mask = {"mask": encode_rle(SCENE.mask(0))}
    prompts = [{"points": [[x, y], [1, 1]], "labels": [1, 0]}, mask, {"box": BOXES[0], "points": [[x, y]]}]
    answer = post(client, regions=prompts)
    assert answer.status_code == 200 and all(region["caption"] for region in answer.json()["regions"])
    assert "masks" not in answer.json()["regions"][0]


def test_a_picture_is_kept_and_encoded_once(client, engine):
    known = client.post("/v1/images", content=FILE).json()
    assert (known["height"], known["width"]) == SCENE.labels.shape
    before = engine.counts["encodings"]
    for box in BOXES[:2]:
        answer = client.post("/v1/caption", json={"image_id": known["image_id"], "regions": [{"box": box}]})
        assert answer.status_code == 200
    assert engine.counts["encodings"] <= before + 1


def test_requests_that_come_together_share_a_call_and_stay_apart(engine, client, expected):
    calls = engine.counts["calls"]
    blocked, release = threading.Event(), threading.Event()

    def hold(_):
        blocked.set()
        release.wait(30)

    image = engine.open_image(FILE)
    from sca_hf.processing.region_prompts_sca import RegionPrompt

    holding = engine.submit(image, [RegionPrompt(box=BOXES[0])], generation={"max_new_tokens": 2}, on_tokens=hold)
    assert blocked.wait(60)
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(post, client, regions=[{"box": BOXES[i % len(BOXES)]}]) for i in range(8)]
        while engine.waiting() < 8:
            pass
        release.set()
        answers = [one.result().json()["regions"][0]["caption"] for one in waiting]
    holding.result()
    assert answers == [expected[i % len(BOXES)] for i in range(8)]
    assert engine.counts["calls"] - calls <= 3, "one that held the engine up, and the eight together"


def test_captions_grow_line_by_line(client, expected):
    answer = post(client, regions=[{"box": BOXES[0]}, {"box": BOXES[1]}], stream=True)
    lines = [json.loads(line) for line in answer.text.splitlines()]
    grown = [line["captions"][0] for line in lines[:-1]]
    assert len(grown) > 3 and all(expected[0].startswith(text) for text in grown)
    assert [region["caption"] for region in lines[-1]["regions"]] == expected[:2]
    assert post(client, regions=[{"box": BOXES[0]}], stream=True, num_beams=2).status_code == 422


def test_everything_in_a_picture(client):
    model, processor = load("sca-tiny", device="cpu")
    records = processor.caption_anything(model, SCENE.to_pil(), {"points_per_side": 8})
    answer = post(client, "/v1/anything", points_per_side=8)
    assert answer.json()["regions"] == json.loads(json.dumps(records)) and records
    coco = post(client, "/v1/anything", points_per_side=8, format="coco").json()
    assert [a["caption"] for a in coco["annotations"]] == [r["caption"] for r in records]


def test_large_pictures_are_answered_a_few_masks_at_a_time(client, engine, monkeypatch, expected):
    whole = post(client, regions=[{"box": box} for box in BOXES]).json()
    monkeypatch.setattr("sca_hf.serving.engine._MASK_PIXELS", 1)
    assert post(client, regions=[{"box": box} for box in BOXES]).json() == whole
    object.__setattr__(engine.limits, "mask_pixels", 100_000)
    answer = post(client, regions=[{"mask": encode_rle(SCENE.mask(0))}] * 3)
    object.__setattr__(engine.limits, "mask_pixels", 256_000_000)
    assert_refused(answer, 413)


def test_the_interface_describes_itself(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/caption", "/v1/anything", "/v1/images", "/v1/models", "/health", "/metrics"} <= set(paths)
    assert client.get("/docs").status_code == 200
    assert client.get("/health").json()["status"] == "ok"
    assert client.get("/v1/models").json()["models"] == ["sca-tiny"]
    about = client.get("/v1/models/sca-tiny").json()
    assert about["tasks"] == ["recognition", "caption"]
    # 64 positions, 14 of them for the prefix.
    assert about["max_new_tokens"] == 50
    assert "sca_regions_total " in client.get("/metrics").text


def test_every_setting_of_anything_mode_is_a_field_with_its_description_and_range(client):
    described = client.get("/openapi.json").json()["components"]["schemas"]["AnythingRequest"]["properties"]
    for setting in fields(AnythingSettings):
        assert setting.name in described
    threshold, _ = described["pred_iou_thresh"]["anyOf"]
    assert (threshold["minimum"], threshold["maximum"]) == (0, 1) and "IoU" in described["pred_iou_thresh"][
        "description"
    ]
    told = client.get("/v1/models/sca-tiny").json()["anything"]
    assert told.keys() == {setting.name for setting in fields(AnythingSettings)}


def bomb(width, height) -> str:
    """A PNG of a few hundred bytes whose head claims a gigantic picture."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return base64.b64encode(data).decode()


BOX = {"box": [10, 10, 60, 60]}
HOSTILE = {
    "no picture": ({"image": None, "regions": [BOX]}, 422),
    "two pictures": ({"image_id": "x", "regions": [BOX]}, 422),
    "an unknown picture": ({"image": None, "image_id": "../../etc/passwd", "regions": [BOX]}, 410),
    "a path": ({"image": "/etc/passwd", "regions": [BOX]}, (415, 422)),
    "an address": ({"image": "http://127.0.0.1/x.png", "regions": [BOX]}, (415, 422)),
    "a file address": ({"image": "file:///etc/passwd", "regions": [BOX]}, (415, 422)),
    "no base64": ({"image": "%%%", "regions": [BOX]}, 422),
    "text as a picture": ({"image": base64.b64encode(b"hello" * 50).decode(), "regions": [BOX]}, 415),
    "an empty picture": ({"image": "", "regions": [BOX]}, 422),
    "a picture cut short": ({"image": base64.b64encode(FILE[: len(FILE) // 2]).decode(), "regions": [BOX]}, 415),
    "a bomb": ({"image": bomb(60000, 60000), "regions": [BOX]}, 413),
    "a larger bomb": ({"image": bomb(2**31 - 1, 2**31 - 1), "regions": [BOX]}, (413, 415)),
    "a flat picture": ({"image": bomb(900_000, 1), "regions": [BOX]}, (413, 415, 422)),
    "a huge picture": (
        {"image": base64.b64encode(file_of(Image.new("L", (2000, 2000)))).decode(), "regions": [BOX]},
        413,
    ),
    "an svg": (
        {"image": base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode(), "regions": [BOX]},
        415,
    ),
    "no regions": ({"regions": []}, 422),
    "no list of regions": ({"regions": "all"}, 422),
    "10,000 regions": ({"regions": [BOX] * 10_000}, 413),
    "an empty region": ({"regions": [{}]}, 422),
    "a region of nulls": ({"regions": [{"box": None, "points": [], "mask": None}]}, 422),
    "an unknown kind": ({"regions": [{"circle": [1, 2, 3]}]}, 422),
    "an unknown field": ({"regions": [BOX], "path": "/etc"}, 422),
    "a box of three": ({"regions": [{"box": [1, 2, 3]}]}, 422),
    "an inverted box": ({"regions": [{"box": [60, 60, 10, 10]}]}, 422),
    "a box outside": ({"regions": [{"box": [1000, 1000, 2000, 2000]}]}, 422),
    "a box of words": ({"regions": [{"box": ["a", "b", "c", "d"]}]}, 422),
    "a huge number": ({"regions": [{"box": [0, 0, 1e308, 1e308]}]}, 422),
    "a point outside": ({"regions": [{"points": [[-50, 9999]]}]}, 422),
    "a point of one": ({"regions": [{"points": [[5]]}]}, 422),
    "labels missing": ({"regions": [{"points": [[5, 5], [6, 6]], "labels": [1]}]}, 422),
    "a label of 7": ({"regions": [{"points": [[5, 5]], "labels": [7]}]}, 422),
    "1,000 points": ({"regions": [{"points": [[5, 5]] * 1000}]}, 422),
    "a mask of another size": ({"regions": [{"mask": {"size": [2, 2], "counts": [1, 3]}}]}, 422),
    "a mask that claims much": ({"regions": [{"mask": {"size": [100_000, 100_000], "counts": [0, 10**10]}}]}, 422),
    "a mask cut short": ({"regions": [{"mask": {"size": [192, 192], "counts": "Pq"}}]}, 422),
    "a mask of nonsense": ({"regions": [{"mask": {"size": [192, 192], "counts": "\x00\xff"}}]}, 422),
    "an empty mask": ({"regions": [{"mask": {"size": [192, 192], "counts": [36864]}}]}, 422),
    "negative counts": ({"regions": [{"mask": {"size": [192, 192], "counts": [-5, 36869]}}]}, 422),
    "an unknown model": ({"regions": [BOX], "model": "gpt2"}, 404),
    "a model that is a path": ({"regions": [BOX], "model": "../../../tmp"}, 404),
    "an unknown task": ({"regions": [BOX], "task": "poetry"}, 422),
    "no beams": ({"regions": [BOX], "num_beams": 0}, 422),
    "1,000 beams": ({"regions": [BOX], "num_beams": 1000}, 422),
    "an endless caption": ({"regions": [BOX], "max_new_tokens": 10**9}, 422),
    "a temperature of 0": ({"regions": [BOX], "do_sample": True, "temperature": 0}, 422),
    "a top_p of 9": ({"regions": [BOX], "do_sample": True, "top_p": 9}, 422),
}
HOSTILE_ANYTHING = {
    "a grid of 10,000": {"points_per_side": 10_000},
    "a grid of 0": {"points_per_side": 0},
    "a negative grid": {"points_per_side": -3},
    "a threshold of 7": {"pred_iou_thresh": 7},
    "many crops": {"crop_n_layers": 4},
    "a huge batch": {"points_per_batch": 100_000},
    "a number as a text": {"points_per_side": "8"},
    "a choice that is a number": {"unique_captions": 1},
    "a prompt of song": {"caption_prompt": "song"},
    "areas the wrong way": {"min_area": 0.9, "max_area": 0.1},
    "an unknown task": {"task": "poetry"},
    "an unknown format": {"format": "xml"},
}


def assert_refused(answer, status):
    allowed = status if isinstance(status, tuple) else (status,)
    assert answer.status_code in allowed, answer.text[:300]
    sentence = answer.json()["error"]
    assert answer.json().keys() == {"error"} and 10 < len(sentence) < 500 and "Traceback" not in sentence


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_requests_are_refused_with_a_sentence(kind, client):
    request, status = HOSTILE[kind]
    assert_refused(post(client, **request), status)


@pytest.mark.parametrize("kind", HOSTILE_ANYTHING)
def test_hostile_settings_are_refused_with_a_sentence(kind, client):
    assert_refused(post(client, "/v1/anything", **HOSTILE_ANYTHING[kind]), 422)


RAW = {
    "NaN": f'{{"image": "{IMAGE}", "regions": [{{"box": [NaN, 1, 2, 3]}}]}}',
    "infinity": f'{{"image": "{IMAGE}", "regions": [{{"points": [[Infinity, 3]]}}]}}',
    "no JSON": "{",
    "a list": "[1, 2]",
    "nothing": "",
    "a deep nest": "[" * 50_000 + "]" * 50_000,
    "no UTF-8": b"\xff\xfe\xfd",
}


@pytest.mark.parametrize("kind", RAW)
def test_hostile_bodies_are_refused_with_a_sentence(kind, client):
    answer = client.post("/v1/caption", content=RAW[kind], headers={"Content-Type": "application/json"})
    assert_refused(answer, (400, 413, 422))


def test_bodies_above_the_limit_are_refused_told_or_not(client):
    assert_refused(client.post("/v1/images", content=bytes(3 << 20)), 413)
    pieces = (bytes(1 << 20) for _ in range(4))  # of a length that nobody tells
    assert_refused(client.post("/v1/images", content=pieces), 413)
    assert_refused(client.post("/v1/images", content=bytes((1 << 20) + 1)), 413)


def test_a_full_queue_says_so(client):
    small = Engine(["sca-tiny"], device="cpu", limits=Limits(waiting=1))
    image = small.open_image(FILE)
    from sca_hf.processing.region_prompts_sca import RegionPrompt

    blocked, release = threading.Event(), threading.Event()
    region = [RegionPrompt(box=BOXES[0])]
    first = small.submit(image, region, on_tokens=lambda _: (blocked.set(), release.wait(30)))
    assert blocked.wait(60)
    second = small.submit(image, region)
    answer = TestClient(create_app(small)).post("/v1/caption", json={"image": IMAGE, "regions": [BOX]})
    release.set()
    assert first.result() and second.result()
    small.close()
    assert_refused(answer, 429)


def test_two_models_of_one_name_are_refused(tmp_path):
    from sca_hf.model_names import bundled_model

    (tmp_path / "sca-tiny").symlink_to(bundled_model("sca-tiny"))
    with pytest.raises(ValueError, match="two models have the name sca-tiny"):
        Engine(["sca-tiny", str(tmp_path / "sca-tiny")])


def test_threads_share_memory_where_the_c_library_lets_them():
    import platform

    from sca_hf.serving.server import limit_arenas

    assert limit_arenas() == (platform.libc_ver()[0] == "glibc")


@pytest.mark.parametrize("request_", [{"regions": [BOX]}, {"regions": [BOX], "stream": True}, {}], ids=str)
def test_a_caption_beyond_the_language_models_positions_is_refused_with_the_numbers(client, request_):
    address = "/v1/caption" if request_ else "/v1/anything"
    answer = post(client, address, **request_, max_new_tokens=60)
    assert answer.status_code == 422
    assert "prefix of 14 vectors and 60 tokens" in answer.json()["error"] and "has 64" in answer.json()["error"]
    if request_:
        assert post(client, address, **request_, max_new_tokens=50).status_code == 200
