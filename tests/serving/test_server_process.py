"""`sca-hf serve` as a process: announced when it answers, open to those with the token, gone when told to."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from base64 import b64encode

import numpy as np
import pytest
from PIL import Image


pytest.importorskip("fastapi", reason="the extra serve is not installed")

from sca_hf.cli import main
from sca_hf.serving.access import check_access, is_loopback
from sca_hf.serving.examples import requests
from tests.serving.server_process import start


TOKEN = "a-token-of-the-tests"


@pytest.fixture(scope="module")
def server():
    """A server with a token and small limits."""
    process, address = start("--limit-regions", "2", SCA_TOKEN=TOKEN)
    yield process, address
    process.kill()
    process.communicate()


def send(address, path, body=None, authorization=f"Bearer {TOKEN}"):
    headers = {"Content-Type": "application/json"} | ({"Authorization": authorization} if authorization else {})
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, data, headers), timeout=120) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A photograph's weight: far above the 128 KiB that an argument may have."""
    path = tmp_path_factory.mktemp("photos") / "street.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (600, 800, 3), np.uint8)).save(path, quality=95)
    assert path.stat().st_size > 300_000
    return path


def test_it_answers_from_the_moment_it_is_announced(server):
    assert send(server[1], "/health")[0] == 200


def test_without_the_token_only_the_description_and_the_health_are_answered(server):
    paths = json.loads(send(server[1], "/openapi.json", authorization=None)[1])["paths"]
    for path, methods in paths.items():
        body = b"{}" if "post" in methods else None
        status, answer = send(server[1], path, body, authorization=None)
        assert status == (200 if path == "/health" else 401)
        assert path == "/health" or "Authorization: Bearer" in json.loads(answer)["error"]
    assert [send(server[1], path, authorization=None)[0] for path in ("/", "/docs")] == [200, 200]


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        ("Basic " + b64encode(f"anyone:{TOKEN}".encode()).decode(), 200),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Bearer {TOKEN} x", 401),
        ("Bearer ", 401),
        ("Basic !", 401),
        (TOKEN, 401),
    ],
)
def test_the_token_comes_as_a_bearer_token_or_a_password(authorization, status, server):
    assert send(server[1], "/v1/models", authorization=authorization)[0] == status


def test_limits_are_set_by_flags(server, photo):
    image = json.loads(send(server[1], "/v1/images", photo.read_bytes())[1])["image_id"]
    regions = [{"box": [0, 0, 50, 50]}] * 3
    status, answer = send(server[1], "/v1/caption", {"image_id": image, "regions": regions})
    assert status == 413 and "2" in json.loads(answer)["error"]
    assert send(server[1], "/v1/caption", {"image_id": image, "regions": regions[:2]})[0] == 200


@pytest.mark.skipif(not all(map(shutil.which, ("curl", "jq", "base64"))), reason="needs curl, jq and base64")
def test_the_examples_work_with_a_photograph(server, photo):
    script = requests(server[1]).replace("curl -s", f"curl -s -H 'Authorization: Bearer {TOKEN}'")
    done = subprocess.run(["bash", "-e", "-c", script], cwd=photo.parent, capture_output=True, text=True)
    answers = re.sub(r"\}\{", "}\n{", done.stdout).splitlines()
    assert done.returncode == 0 and [json.loads(answer).keys() for answer in answers] == [{"regions"}] * 3, done
    assert [len(json.loads(answer)["regions"]) for answer in (answers[0], answers[2])] == [2, 1]


def test_sigterm_lets_requests_finish_and_ends_with_0(server, photo):
    process, address = server
    picture = b64encode(photo.read_bytes()).decode()
    got = []
    body = {"image": picture, "regions": [{"box": [0, 0, 50, 50]}], "num_beams": 4, "stream": False}
    waiting = threading.Thread(target=lambda: got.append(send(address, "/v1/caption", body)))
    before = int(re.search(rb"sca_encodings_total (\d+)", send(address, "/metrics")[1]).group(1))
    waiting.start()
    while send(address, "/metrics")[1].find(b"sca_waiting 1") < 0 and waiting.is_alive():
        now = int(re.search(rb"sca_encodings_total (\d+)", send(address, "/metrics")[1]).group(1))
        if now > before:
            break
    process.send_signal(signal.SIGTERM)
    waiting.join(60)
    assert got and got[0][0] == 200
    assert process.wait(30) == 0 and process.stderr.read().endswith("sca-hf serve: stopped\n")


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_a_port_in_use_is_told_before_a_model_is_loaded_and_nothing_is_announced(command, capsys, monkeypatch):
    if command == "demo":
        pytest.importorskip("gradio", reason="the extra demo is not installed")
    monkeypatch.setattr("sca_hf.serving.server.Engine", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([command, "--port", str(port)]) == 2
    told = capsys.readouterr()
    assert not told.out and f"cannot listen on port {port} of 127.0.0.1: it is in use" in told.err
    assert main([command, "--port", "70000"]) == 2
    assert "the port is 70000, expected 0 to 65535" in capsys.readouterr().err
    assert main([command, "--host", "no such host", "--no-auth"]) == 2
    assert "there is no address 'no such host' to listen on" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.9.1"])
def test_this_machine_alone_needs_no_token(host):
    assert is_loopback(host)
    check_access(host, None, False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.1.2.3", "no such host"])
def test_other_machines_need_a_token_or_a_decision(host):
    with pytest.raises(ValueError, match="set a token with SCA_TOKEN or --token, or pass --no-auth"):
        check_access(host, None, False)
    check_access(host, None, True)
    check_access(host, "0123456789", False)


@pytest.mark.parametrize("token", ["", "short", "with space in it", "ümlautümlaut", "0123456789\n"])
def test_a_token_that_cannot_be_sent_or_is_guessed_is_refused(token):
    with pytest.raises(ValueError, match="a token must have 8 or more"):
        check_access("127.0.0.1", token, False)


def test_the_wish_for_a_token_and_for_none_is_refused():
    with pytest.raises(ValueError, match="cannot be combined"):
        check_access("127.0.0.1", "0123456789", True)


def test_missing_packages_are_told_before_anything_else(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['gradio'] = sys.modules['uvicorn'] = None\n")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    for command, package in (("demo", "gradio"), ("serve", "uvicorn")):
        done = subprocess.run(
            [sys.executable, "-m", "sca_hf", command],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2 and not done.stdout
        said = rf'sca-hf {command}: error: The \w+ needs {package}: pip install .*"{package}[<>=]\S+".*\n'
        assert re.fullmatch(said, done.stderr)
