"""The page that describes the server: made from its description, and of nothing from elsewhere."""

import re
from html import unescape

import pytest


pytest.importorskip("fastapi", reason="the extra serve is not installed")

from fastapi.testclient import TestClient

from sca_hf.serving import Engine, Limits
from sca_hf.serving.api import create_app
from sca_hf.serving.examples import requests


@pytest.fixture(scope="module")
def engine():
    one = Engine(["sca-tiny"], device="cpu", limits=Limits(regions=7))
    yield one
    one.close()


@pytest.fixture(scope="module")
def client(engine):
    return TestClient(create_app(engine))


def test_it_loads_nothing_from_elsewhere(client):
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    linked = re.findall(r'(?:src|href|action)="([^"]*)"|url\(([^)]*)\)|@import (\S+)', page.text)
    assert {"".join(one) for one in linked} == {"data:,", "openapi.json"} and "<script" not in page.text


def test_it_names_every_request_with_its_fields_and_the_limits(client):
    text = unescape(re.sub(r"<[^>]+>", " ", client.get("/docs").text))
    description = client.get("/openapi.json").json()
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            assert f"{method.upper()} {path}" in text and operation["summary"] in text
    for name in ("CaptionRequest", "AnythingRequest", "KeptImage"):
        for field in description["components"]["schemas"][name]["properties"]:
            assert re.search(rf"\b{field}\b", text), field
    assert re.search(r"regions\s+7\b", text)
    assert requests("http://testserver").strip() in text and "Authorization: Bearer" in text


def test_the_root_points_to_it(client):
    assert client.get("/").json()["documentation"] == "/docs"
    browser = client.get("/", headers={"Accept": "text/html,*/*"}, follow_redirects=False)
    assert browser.status_code == 307 and browser.headers["location"] == "docs"


def test_a_page_has_the_root_to_itself(engine):
    assert TestClient(create_app(engine, root=False)).get("/").status_code == 404


def test_what_a_caller_calls_the_server_is_not_markup(client):
    page = client.get("/docs", headers={"Host": '"><script>alert(1)</script>'})
    assert "<script" not in page.text
