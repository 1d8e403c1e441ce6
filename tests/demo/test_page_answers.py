"""What the page is answered, without a browser: records, sentences for mistakes, and no way to the disk."""

import base64
import io
import json
import re
import socket
from importlib import resources
from pathlib import Path

import pytest

from sca_hf.data.scenes import scenes
from sca_hf.processing.masks_sca import decode_rle, encode_rle
from sca_hf.serving import Engine


pytest.importorskip("gradio", reason="the extra demo is not installed")

from fastapi.testclient import TestClient

from sca_hf.demo.blocks import PageAnswers, page_app
from sca_hf.demo.examples import EXAMPLES
from sca_hf.serving.api import create_app
from sca_hf.serving.gate import Gate


SCENE = next(scenes("test", 1, 10))


@pytest.fixture(scope="module")
def answers(engine):
    return PageAnswers(engine)


@pytest.fixture(scope="module")
def picture(answers):
    data = io.BytesIO()
    SCENE.to_pil().save(data, "PNG")
    return answers.open_picture({"data": base64.b64encode(data.getvalue()).decode()})


def test_the_page_can_be_built_by_others():
    import gradio

    from sca_hf.demo import build, main

    assert isinstance(build(device="cpu"), gradio.Blocks) and callable(main)


def test_a_page_begins_with_models_examples_and_a_session_of_its_own(answers):
    one, other = answers.start({}), answers.start({})
    assert one["models"] == ["sca-tiny"] and one["session"] != other["session"]
    assert all(example["view"].startswith("data:image/jpeg;base64,") for example in one["examples"])
    assert len(json.dumps(one)) < 60_000, "it is what a visitor waits for"


def test_a_page_does_not_wait_for_its_model(monkeypatch):
    class NoModel(Engine):
        def model(self, name=None):
            raise AssertionError("a model was asked for")

    engine = NoModel(device="cpu")
    monkeypatch.setattr(engine, "encode_soon", lambda *arguments: None)
    answers = PageAnswers(engine)
    assert answers.start({})["models"] == ["sca-photo"]
    assert answers.open_picture({"example": 0})["width"] == 600
    engine.close()


def test_a_model_is_described_with_its_card_and_presets(answers):
    model = answers.describe_model({})
    assert model["tasks"] == ["recognition", "caption"] and "# sca-tiny" in model["card"]
    sides = [
        {**model["anything"], **model["presets"][name]}["points_per_side"] for name in ("sparse", "normal", "dense")
    ]
    assert sides == sorted(set(sides)) and sides[-1] <= answers.engine.limits.points_per_side


def test_examples_are_real_pictures_whose_makers_are_named(answers):
    notice = (resources.files("sca_hf.demo") / "page" / "examples" / "NOTICE.md").read_text()
    for number, example in enumerate(EXAMPLES):
        opened = answers.open_picture({"example": number})
        assert min(opened["width"], opened["height"]) >= 300
        assert example.credit.lower() in notice.lower() and example.license.split()[0] in notice
        assert f"`{example.file}`" in notice and example.source in notice
    size = sum(file.stat().st_size for file in Path(str(resources.files("sca_hf.demo"))).rglob("examples/*"))
    assert size < 300_000


def test_what_an_example_shows_is_known_to_the_default_model():
    expected = {
        "coffee.jpg": ([170, 18, 410, 312], "a cup"),
        "cat.jpg": ([0, 0, 451, 300], "a cat"),
        "astronaut.jpg": ([20, 10, 365, 512], "a person"),
        # As annotated by those who made the picture.
        "cells.jpg": ([297, 155, 393, 255], "red blood cell"),
    }
    engine = Engine(device="cpu")
    answers = PageAnswers(engine)
    for number, example in enumerate(EXAMPLES):
        box, name = expected[example.file]
        opened = answers.open_picture({"example": number})
        assert answers.describe({"image_id": opened["image_id"], "region": {"box": box}})["caption"] == name
    engine.close()


def test_a_region_has_its_masks_at_the_size_of_the_picture_and_of_the_view(answers, picture):
    region = {"points": [list(SCENE.objects[0].point)], "labels": [1]}
    record = answers.describe([{"image_id": picture["image_id"], "region": region, "options": {"num_beams": 1}}])
    assert record["caption"] and record["score"] < 0 and len(record["masks"]) == 3
    for mask in record["masks"]:
        full, view = decode_rle(mask["mask"]), decode_rle(mask["view"])
        assert full.shape == SCENE.labels.shape and full.sum() == mask["area"]
        factor = view.shape[0] // full.shape[0]
        assert (view[::factor, ::factor] == full).all()


def test_a_brush_paints_on_the_view(answers, picture):
    mask = SCENE.mask(0).repeat(4, 0).repeat(4, 1)
    record = answers.describe({"image_id": picture["image_id"], "region": {"mask": encode_rle(mask)}})
    full = answers.describe({"image_id": picture["image_id"], "region": {"mask": encode_rle(SCENE.mask(0))}})
    assert record["caption"] == full["caption"]


def test_everything_is_told_and_drawn(answers, picture):
    said = answers.everything({"image_id": picture["image_id"], "settings": {"points_per_side": 8}, "job": "j"})
    assert said["regions"] and all(region["view"] for region in said["regions"])
    kept = [{"caption": r["caption"], "segmentation": r["segmentation"]} for r in said["regions"]]
    drawn = answers.draw({"image_id": picture["image_id"], "regions": kept})
    assert base64.b64decode(drawn["png"]).startswith(b"\x89PNG")
    assert answers.progress({"job": "j"}) == {"fraction": 0.0, "text": "Waiting"}, "a finished job is forgotten"
    for region in said["regions"]:
        x, y = (int(value) for value in region["spot"])
        assert decode_rle(region["view"])[y, x]


def test_a_session_has_one_job(answers, picture, monkeypatch):
    seen = {}

    def meanwhile(*arguments, **options):
        arguments[-1]("masks", 3, 12)
        seen["progress"] = answers.progress({"job": "first"})
        seen["same"] = answers.everything({"image_id": picture["image_id"], "session": "mine", "job": "second"})
        return []

    monkeypatch.setattr(answers.engine, "anything", meanwhile)
    assert answers.everything({"image_id": picture["image_id"], "session": "mine", "job": "first"}) == {"regions": []}
    assert "still being processed" in seen["same"]["error"]
    assert 0.15 < seen["progress"]["fraction"] < 0.85 and seen["progress"]["text"] == "Finding things"


def test_a_cancelled_job_ends_and_the_next_one_is_taken_at_once(answers, picture, monkeypatch):
    steps, note = [], answers._note

    def cancelling(session, job, *step):
        steps.append((job, *step))
        if step[:2] == ("masks", 0) and job == "first":
            assert answers.cancel({"session": "mine", "job": "first"}) == {}
        note(session, job, *step)

    monkeypatch.setattr(answers, "_note", cancelling)
    job = {"image_id": picture["image_id"], "session": "mine"}
    assert answers.everything({**job, "job": "first"})["error"] == "This was cancelled."
    assert "captions" not in [step[1] for step in steps]
    monkeypatch.setattr(answers, "_note", lambda *step: (answers.cancel({**job, "job": "first"}), note(*step)))
    assert answers.everything({**job, "job": "second"})["regions"], "a late word to the first ends no other"
    assert answers.progress({"job": "first"})["fraction"] == 0


def test_a_picture_that_is_forgotten_is_said_to_be_gone(answers):
    assert answers.describe({"image_id": "of another server", "region": GOOD})["gone"] is True


GOOD = {"points": [[50, 50]], "labels": [1]}
WRONG = {
    "no request": ("describe", "hello"),
    "an unknown picture": ("describe", {"image_id": "../../etc/passwd", "region": GOOD}),
    "no region": ("describe", {"region": None}),
    "an empty region": ("describe", {"region": {}}),
    "a point outside alone": ("describe", {"region": {"points": [[5, 5]], "labels": [0]}}),
    "a point of words": ("describe", {"region": {"points": [["a", "b"]], "labels": [1]}}),
    "a point that is NaN": ("describe", {"region": {"points": [[float("nan"), 4]], "labels": [1]}}),
    "a point far away": ("describe", {"region": {"points": [[5000, 4]], "labels": [1]}}),
    "labels missing": ("describe", {"region": {"points": [[5, 4]], "labels": []}}),
    "a box of two": ("describe", {"region": {"box": [1, 2]}}),
    "a mask of another size": ("describe", {"region": {"mask": {"size": [9, 9], "counts": [81]}}}),
    "an empty mask": ("describe", {"region": {"mask": {"size": [192, 192], "counts": [36864]}}}),
    "a damaged mask": ("describe", {"region": {"mask": {"size": [192, 192], "counts": "?"}}}),
    "too many beams": ("describe", {"region": GOOD, "options": {"num_beams": 99}}),
    "an unknown option": ("describe", {"region": GOOD, "options": {"stopping_criteria": 1}}),
    "options of another kind": ("describe", {"region": GOOD, "options": [1]}),
    "an unknown task": ("describe", {"region": GOOD, "options": {"task": "poetry"}}),
    "a model by its path": ("describe", {"region": GOOD, "model": "/tmp"}),
    "a model that is a number": ("describe_model", {"model": 3}),
    "an example of nowhere": ("open_picture", {"example": 99}),
    "a broken file": ("open_picture", {"data": base64.b64encode(b"no picture").decode()}),
    "no base64": ("open_picture", {"data": "%"}),
    "a grid too dense": ("everything", {"settings": {"points_per_side": 1000}}),
    "a threshold of 9": ("everything", {"settings": {"pred_iou_thresh": 9}}),
    "settings of words": ("everything", {"settings": {"pred_iou_thresh": "high"}}),
    "a thousand drawings": ("draw", {"regions": [{}] * 1000}),
    "a drawing of nothing": ("draw", {"regions": [None]}),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_a_sentence(mistake, answers, picture, caplog):
    name, payload = WRONG[mistake]
    if isinstance(payload, dict):
        payload = {"image_id": picture["image_id"], **payload}
    error = getattr(answers, name)(payload)["error"]
    assert not error[0].isspace() and error.endswith(".") and "Traceback" not in error
    assert "went wrong on the server" not in error, caplog.text


def routes_of(routes, prefix=""):
    """Method and path of every route of an application, those of mounted and included ones too."""
    for route in routes:
        below = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None)
        if below:
            yield from routes_of(below, prefix + (getattr(route, "path", "") or ""))
        else:
            yield from ((method, prefix + route.path) for method in route.methods)


PAGE = {("GET", "/"), ("HEAD", "/"), ("GET", "/theme.css"), ("GET", "/favicon.ico")}
PAGE |= {("GET", "/assets/{path:path}"), ("GET", "/static/{path:path}"), ("POST", "/gradio_api/component_server")}
PAGE |= {("POST", "/gradio_api/component_server/")}


def test_of_all_routes_only_those_that_page_and_interface_use_are_open(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    app = page_app(engine)
    own = set(routes_of(create_app(engine, root=False).routes))
    found = set(routes_of(app.routes)) | {
        ("POST", "/gradio_api/process_recording"),
        ("GET", "/gradio_api/file=/etc/passwd"),
    }
    found |= {(method, path.removeprefix("/gradio_api")) for method, path in found} | {("GET", "/../etc/passwd")}
    assert (
        len(found) > 100
        and found >= PAGE
        and {"/gradio_api/upload", "/gradio_api/queue/join"} <= {p for _, p in found}
    )
    client = TestClient(app, raise_server_exceptions=False)
    for method, path in sorted(found - own - PAGE):
        place = re.sub(r"\{\w+(:path)?\}", "x", path)
        file = {"files": ("x.txt", io.BytesIO(b"hello"), "text/plain")} if method == "POST" else None
        if (method, "/" + place.split("/")[1] + "/{path:path}") not in PAGE and (method, path) not in own:
            assert client.request(method, place, files=file).status_code in (404, 405), path
    assert not list(tmp_path.rglob("*"))
    assert "gradio" in client.get("/").text.lower() and client.get("/theme.css").is_success
    assert client.get("/health").json()["status"] == "ok"


def test_only_the_page_itself_calls_its_functions(engine):
    client = TestClient(Gate(page_app(engine), ()), base_url="http://localhost:7860")
    component = re.search(r'"id":(\d+),"type":"html"', client.get("/").text.replace(" ", ""))[1]
    call = {"data": {}, "component_id": int(component), "fn_name": "start", "session_hash": "x"}

    def status(**headers):
        content = json.dumps(call).encode()
        given = {
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        return client.post("/gradio_api/component_server/", content=content, headers=given).status_code

    assert status() == 200 and status(Origin="http://localhost:7860", Sec_Fetch_Site="same-origin") == 200
    assert (
        status(Origin="http://localhost:1")
        == status(Host="evil.example")
        == status(Sec_Fetch_Site="cross-site")
        == 403
    )
    assert status(Content_Type="text/plain") == 415
    assert client.get("/", headers={"Host": "evil.example", "Origin": "http://evil.example"}).status_code == 403


def test_a_cancelled_job_ends_at_the_next_token(answers, picture, monkeypatch):
    steps, note = [], answers._note

    def cancelling(session, job, *step):
        steps.append(step[0])
        if steps.count("captions") == 3:
            answers.cancel({"session": "mine", "job": "first"})
        note(session, job, *step)

    monkeypatch.setattr(answers, "_note", cancelling)
    job = {"image_id": picture["image_id"], "session": "mine", "job": "first"}
    assert answers.everything(job)["error"] == "This was cancelled."
    assert steps.count("captions") == 3


def free_port(listen=False):
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    if not listen:
        taken.close()
    return port, taken


def test_a_taken_port_is_said_before_a_model_is_loaded_and_nothing_is_announced(monkeypatch):
    from sca_hf.demo import serve

    monkeypatch.setattr(Engine, "model", lambda *arguments: pytest.fail("a model was loaded"))
    port, taken = free_port(listen=True)
    with taken, pytest.raises(OSError, match=f"port {port} .* name another with --port"):
        serve(port=port, device="cpu", started=lambda engine, address: pytest.fail("announced"))


def test_a_model_that_cannot_be_loaded_ends_the_page(tmp_path):
    from sca_hf.demo import serve

    (tmp_path / "config.json").write_text("{}")
    announced = []
    with pytest.raises((ValueError, OSError, KeyError)):
        serve([str(tmp_path)], port=free_port()[0], device="cpu", started=lambda *told: announced.append(told))


@pytest.mark.parametrize("command", ["anything", "demo", "serve"])
def test_the_commands_explain_themselves(command, capsys):
    from sca_hf.cli import build_parser

    with pytest.raises(SystemExit, match="0"):
        build_parser().parse_args([command, "--help"])
    assert f"\n  sca-hf {command}" in capsys.readouterr().out
