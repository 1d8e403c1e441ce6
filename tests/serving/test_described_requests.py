"""Requests drawn from the interface's own description, right and wrong: answered as described, or refused."""

import base64
import io

import pytest


pytest.importorskip("schemathesis", reason="schemathesis is not installed")
pytest.importorskip("fastapi", reason="the extra serve is not installed")

import schemathesis
from hypothesis import HealthCheck, given, settings

from sca_hf.data.scenes import scenes
from sca_hf.serving import Engine, Limits
from sca_hf.serving.api import create_app


# Each of the operations that take a body gets so many of either kind; the ones that take none have one request.
EXAMPLES = 60
QUICK = settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def picture() -> str:
    buffer = io.BytesIO()
    next(scenes("test", 1, 3)).to_pil().resize((64, 64)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


IMAGE = picture()


@pytest.fixture(scope="module")
def described():
    engine = Engine(["sca-tiny"], device="cpu", limits=Limits(file_bytes=1 << 20, regions=20, points_per_side=4))
    yield schemathesis.openapi.from_asgi("/openapi.json", create_app(engine))
    engine.close()


def answers(operation, mode, change=lambda case: case):
    """Sends what is drawn from the description of an operation; returns what was sent and the statuses."""
    statuses, bodies = [], set()
    checks = [
        schemathesis.checks.CHECKS.get_one(name)
        for name in (
            "not_a_server_error",
            "status_code_conformance",
            "content_type_conformance",
            "response_schema_conformance",
        )
    ]

    @QUICK
    @given(case=operation.as_strategy(generation_mode=mode))
    def post(case):
        case = change(case)
        answer = case.call()
        case.validate_response(answer, checks=checks)
        statuses.append(answer.status_code)
        bodies.add(repr((case.body, case.query, case.path_parameters)))
        if answer.status_code >= 400:
            sentence = answer.json()["error"]
            assert 10 <= len(sentence) <= 501 and "Traceback" not in sentence

    post()
    return statuses, bodies


@pytest.mark.parametrize("path", ["/v1/caption", "/v1/anything"])
def test_what_the_description_forbids_is_refused(described, path):
    statuses, bodies = answers(described[path]["POST"], schemathesis.GenerationMode.NEGATIVE)
    assert all(400 <= status < 500 for status in statuses) and len(bodies) >= EXAMPLES // 2


def with_picture(case):
    if isinstance(case.body, dict):
        case.body = {**case.body, "image": IMAGE}
        case.body.pop("image_id", None)
        case.body.pop("model", None)
        case.body.pop("task", None)
    return case


@pytest.mark.parametrize("path", ["/v1/caption", "/v1/anything"])
def test_what_it_allows_is_answered_as_described_or_refused(described, path):
    for change in (lambda case: case, with_picture):
        statuses, bodies = answers(described[path]["POST"], schemathesis.GenerationMode.POSITIVE, change)
        assert set(statuses) <= {200, 404, 410, 413, 415, 422} and len(bodies) >= EXAMPLES // 2


def test_a_file_is_kept_if_it_is_a_picture(described):
    statuses, bodies = answers(described["/v1/images"]["POST"], schemathesis.GenerationMode.POSITIVE)
    assert set(statuses) <= {201, 413, 415, 422} and len(bodies) >= EXAMPLES // 2


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/{name}", "/health", "/metrics"])
def test_the_rest_answers_as_described(described, path):
    statuses, _ = answers(described[path]["GET"], schemathesis.GenerationMode.POSITIVE)
    assert set(statuses) <= ({200} if "{" not in path else {200, 404})


def test_true_answers_are_as_described(described):
    """Drawn requests seldom hit a picture: these do."""
    for path, body in (
        ("/v1/caption", {"regions": [{"box": [5, 5, 40, 40]}], "all_masks": True}),
        ("/v1/caption", {"regions": [{"points": [[9, 9]]}]}),
        ("/v1/anything", {"points_per_side": 4}),
        ("/v1/anything", {"points_per_side": 4, "format": "coco"}),
    ):
        case = described[path]["POST"].Case(body={"image": IMAGE, **body}, media_type="application/json")
        answer = case.call()
        assert answer.status_code == 200 and (answer.json().get("regions") or answer.json()["annotations"])
        case.validate_response(answer)
