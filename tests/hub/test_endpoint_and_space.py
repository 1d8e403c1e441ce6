"""handler.py answers what Inference Endpoints ask; the folder of a Space starts by itself."""

import base64
import importlib.util
import io
import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from huggingface_hub import HfApi
from publishing import save_whole

from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.hub.publish import staged_model, upload
from sca_hf.hub.space import publish_space, write_space
from sca_hf.processing.masks_sca import decode_rle, encode_rle
from sca_hf.testing import tiny_image


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The folder as it is uploaded, handler and all."""
    with staged_model(save_whole(tmp_path_factory.mktemp("endpoint") / "model")) as facts:
        yield facts.folder


@pytest.fixture(scope="module")
def handler(repository):
    """Made as the endpoint's server makes it: from the file, with the repository's folder."""
    spec = importlib.util.spec_from_file_location("handler", repository / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(repository))


def post(handler, request):
    """What the endpoint's server does with a request's body: 200 and JSON, or 400 and the sentence."""
    try:
        return 200, json.loads(json.dumps(handler(request)))
    except ValueError as error:
        return 400, str(error)


def picture(size=(80, 60), kind="PNG"):
    buffer = io.BytesIO()
    tiny_image(3, size).save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def mask():
    pixels = np.zeros((60, 80), bool)
    pixels[20:40, 30:60] = True
    return encode_rle(pixels)


def test_regions_of_every_kind_get_the_models_own_answers(handler, repository):
    regions = [{"box": [5, 5, 40, 30]}, {"points": [[60, 40], [2, 2]], "labels": [1, 0]}, {"mask": mask()}]
    status, records = post(handler, {"inputs": {"image": picture(), "regions": regions}})
    assert (
        status == 200
        and [sorted(record) for record in records] == [["box", "caption", "confidence", "iou", "mask", "score"]] * 3
    )
    model, processor = (
        ScaForConditionalGeneration.from_pretrained(repository),
        ScaProcessor.from_pretrained(repository),
    )
    inputs = processor(
        tiny_image(3),
        input_boxes=[[[5, 5, 40, 30], None, None]],
        input_points=[[None, [[60, 40], [2, 2]], None]],
        input_labels=[[None, [1, 0], None]],
        input_masks=[[None, None, decode_rle(mask())]],
    )
    outputs = model.generate(**inputs)
    expected = processor.post_process_regions(outputs, inputs["original_sizes"], inputs["reshaped_input_sizes"])[0]
    for record, other in zip(records, expected, strict=True):
        assert record["caption"] == other["caption"] and math.isclose(record["iou"], other["iou"], rel_tol=1e-5)
        assert np.array_equal(decode_rle(record["mask"]), other["mask"])


def test_a_bare_picture_is_one_region_and_parameters_reach_generate(handler):
    bare = post(handler, {"inputs": "data:image/jpeg;base64," + picture(kind="JPEG")})
    assert bare[0] == 200 and len(bare[1]) == 1
    options = {"max_new_tokens": 2, "num_beams": 2, "masks": False, "task": "recognition"}
    (record,) = post(handler, {"inputs": picture(), "parameters": options})[1]
    assert "mask" not in record and len(record["caption"]) < len(bare[1][0]["caption"])


def of(**region):
    """A request for one region."""
    return {"inputs": {"image": picture(), "regions": [region]}}


BAD = {
    "no inputs": ({"image": "x"}, "the request must be"),
    "no image": ({"inputs": {"regions": []}}, "inputs.image must be"),
    "no base64": ({"inputs": "$$$"}, "not a picture in base64"),
    "no picture": ({"inputs": base64.b64encode(b"GIF89a nonsense").decode()}, "not a picture|broken"),
    "a cut picture": ({"inputs": picture()[:4000]}, "broken|not a picture"),
    "unknown field": ({"inputs": {"image": picture(), "url": "http://x"}}, r"unknown fields \['url'\]"),
    "a path": ({"inputs": "/etc/passwd"}, "not a picture in base64"),
    "no regions": ({"inputs": {"image": picture(), "regions": []}}, "give at least one region"),
    "too many": ({"inputs": {"image": picture(), "regions": [{"box": [0, 0, 9, 9]}] * 1001}}, "the limit is 1000"),
    "empty region": (of(), r"regions\[0\] has no prompt"),
    "three numbers": (of(box=[1, 2, 3]), "four finite numbers"),
    "not a number": (of(box=[math.nan, 0, 9, 9]), "four finite numbers"),
    "outside": (of(box=[0, 0, 900, 9]), "(?i)box"),
    "labels only": (of(box=[0, 0, 9, 9], labels=[1]), "labels without"),
    "label 7": (of(points=[[1, 1]], labels=[7]), "expected 1 .inside. or 0"),
    "a mask of another size": (of(mask={"size": [9, 9], "counts": "x"}), r"\[60, 80\]"),
    "a broken mask": (of(mask={"size": [60, 80], "counts": [1]}), "mask"),
    "unknown parameter": ({"inputs": picture(), "parameters": {"custom_generate": "evil/x"}}, "custom_generate"),
    "a million beams": ({"inputs": picture(), "parameters": {"num_beams": 10**6}}, "at most 8"),
    "many tokens in all": (
        {
            "inputs": {"image": picture(), "regions": [{"box": [1, 1, 60, 50]}] * 200},
            "parameters": {"num_beams": 8, "max_new_tokens": 128},
        },
        "are 204,800; at most 131,072",
    ),
    "a long picture": ({"inputs": picture((70_000, 2))}, "70000 x 2 pixels; at most"),
    "unknown task": ({"inputs": picture(), "parameters": {"task": "sing"}}, "sing"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_400_with_a_sentence(handler, name):
    request, message = BAD[name]
    status, answer = post(handler, request)
    assert status == 400
    with pytest.raises(ValueError, match=message):
        raise ValueError(answer)


def test_the_largest_pictures_are_refused_before_they_are_decoded(handler, monkeypatch):
    monkeypatch.setitem(type(handler).__call__.__globals__, "MAX_PIXELS", 100)
    assert post(handler, {"inputs": picture()}) == (
        400,
        "the image has 80 x 60 pixels; at most 100, and 65,535 a side, are read.",
    )


DEMO = '''
"""Stands for the page: loads the model as the page does, and answers once."""


def serve(models, host, port):
    import json

    from sca_hf.captioning import caption_images, load
    from sca_hf.processing.region_prompts_sca import RegionPrompt

    assert (models[0].split("/")[-1], host, port) == ("shown", "0.0.0.0", 7860)
    loaded = load(models[0], "cpu")
    for _, regions in caption_images(*loaded, ["image.png"], [[RegionPrompt(box=[5, 5, 40, 30])]]):
        print(json.dumps(regions[0].caption))
'''


@pytest.fixture
def space(online, repository, tmp_path):
    """A published Space's folder, and the environment of the process that runs it."""
    api = HfApi(online.url)
    api.create_repo("ann/shown", exist_ok=True)
    commit = upload(api, "ann/shown", repository)
    folder = write_space(tmp_path / "space", "ann/shown", commit)
    publish_space(api, folder, "ann/shown")
    head = (folder / "README.md").read_text()
    assert "sdk: gradio" in head and "app_file: app.py" in head and commit in head
    tiny_image(3).save(folder / "image.png")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
    own = {"HF_ENDPOINT": online.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    return folder, environment | own


@pytest.mark.slow
def test_the_folder_of_a_space_runs_alone(online, space, repository):
    """With something small in place of the page, which needs more than the tests have."""
    files = online.repository("ann/shown", "space").resolve("main").files
    assert {"app.py", "README.md", "requirements.txt", "sca_hf/__init__.py"} <= set(files)
    assert not any("assets" in name or "__pycache__" in name for name in files)
    folder, environment = space
    (folder / "sca_hf" / "demo" / "__init__.py").write_text(DEMO)
    done = subprocess.run([sys.executable, "app.py"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    inputs = ScaProcessor.from_pretrained(repository)(tiny_image(3), input_boxes=[[5, 5, 40, 30]])
    model = ScaForConditionalGeneration.from_pretrained(repository)
    expected = ScaProcessor.from_pretrained(repository).batch_decode(model.generate(**inputs))
    assert json.loads(done.stdout) == expected[0][0]


@pytest.mark.slow
@pytest.mark.skipif(not all(map(importlib.util.find_spec, ("gradio", "uvicorn"))), reason="needs sca-hf[demo,serve]")
def test_the_page_of_a_space_answers(space):
    folder, environment = space
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = folder / "app.py"
    app.write_text(app.read_text().replace("7860", str(port)).replace("0.0.0.0", "127.0.0.1"))
    process = subprocess.Popen([sys.executable, "app.py"], cwd=folder, env=environment)
    try:
        answer = None
        while answer is None and process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=30) as reply:
                    answer = json.load(reply)
            except urllib.error.URLError:
                time.sleep(0.5)
        assert answer == {"models": ["shown"]}
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30).status == 200
    finally:
        process.terminate()
        process.wait()


def test_a_caption_beyond_the_language_models_positions_is_refused_with_the_numbers(handler):
    inputs = {"image": picture(), "regions": [{"box": [5, 5, 40, 30]}]}
    assert post(handler, {"inputs": inputs, "parameters": {"max_new_tokens": 110}})[0] == 200
    status, sentence = post(handler, {"inputs": inputs, "parameters": {"max_new_tokens": 120}})
    assert status == 400 and "need 134 positions" in sentence and "has 128" in sentence
