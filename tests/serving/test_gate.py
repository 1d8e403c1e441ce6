"""What a server takes, from whom and for how long: foreign pages, bodies that cost much or never end, clients gone."""

import json
import signal
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
import zlib
from base64 import b64decode, b64encode
from concurrent.futures import ThreadPoolExecutor

import pytest


pytest.importorskip("fastapi", reason="the extra serve is not installed")

from fastapi.testclient import TestClient

from sca_hf.processing.region_prompts_sca import RegionPrompt
from sca_hf.serving.api import create_app
from sca_hf.serving.gate import Gate
from sca_hf.serving.limits import ClientLeftError, client_left
from tests.serving.server_process import connect, memory, metric, picture, running, wait_for


# Real servers, real time limits.
pytestmark = pytest.mark.slow


REGION = {"image": picture(), "regions": [{"box": [5, 5, 50, 50]}]}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server():
    with running("--limit-body-seconds", "2") as one:
        yield one


def post(address, path="/v1/caption", body=None, **headers):
    data = json.dumps(body if body is not None else REGION).encode() if not isinstance(body, bytes) else body
    request = urllib.request.Request(address + path, data, {**JSON, **headers})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


# Hosts


LOCAL = ["localhost", "LOCALHOST:8000", "app.localhost", "127.0.0.1:8000", "127.3.4.5", "[::1]:8000", "localhost."]
FOREIGN = [
    "evil.example",
    "evil.example:8000",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "10.0.0.1",
    "[::2]",
]
FOREIGN += ["192.168.1.7:8000", "a@evil.example", "localhost@evil.example", "[", "127.0.0.1:8000.evil.example"]


@pytest.mark.parametrize(("hosts", "bound"), [((), "127.0.0.1"), (("my.example",), "localhost"), ((), "::1")])
def test_a_local_server_answers_to_names_of_this_machine_only(engine, hosts, bound):
    client = TestClient(Gate(create_app(engine), hosts, bound))
    for name in [*LOCAL, *hosts]:
        assert client.get("/health", headers={"Host": name}).status_code == 200, name
    for name in FOREIGN:
        for path in ("/health", "/docs", "/openapi.json", "/nothing"):
            assert client.get(path, headers={"Host": name}).status_code == 403, name
        assert client.post("/v1/caption", json=REGION, headers={"Host": name}).status_code == 403


def test_an_open_server_answers_to_numbers_and_to_the_names_it_was_given(engine):
    client = TestClient(Gate(create_app(engine), ["my.example"], "0.0.0.0"))
    names = {"10.0.0.1:80": 200, "my.example": 200, socket.gethostname(): 200, "evil.example": 403, "localhost": 200}
    assert {name: client.get("/health", headers={"Host": name}).status_code for name in names} == names
    anywhere = TestClient(Gate(create_app(engine), ["*"], "0.0.0.0"))
    assert anywhere.get("/health", headers={"Host": "evil.example"}).status_code == 200


# Origins


ORIGINS = [
    "https://evil.example",
    "null",
    "http://127.0.0.1:1",
    "http://localhost",
    "file://",
    "http://127.0.0.1.evil.org",
]


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("kind", ["application/json", "text/plain", "multipart/form-data; boundary=x", "image/png"])
def test_pages_of_other_sites_cannot_use_it(server, origin, kind):
    for path, body in (("/v1/caption", None), ("/v1/images", b64decode(REGION["image"]))):
        headers = {"Content-Type": kind, "Origin": origin}
        assert post(server[1], path, body, **headers)[0] == 403
        assert post(server[1], path, body, **headers, **{"Sec-Fetch-Site": "cross-site"})[0] == 403


def test_its_own_pages_links_and_pages_of_a_name_that_was_given_can(engine):
    client = TestClient(Gate(create_app(engine), ["my.example"]), base_url="http://localhost:8000")
    own = {"Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"}
    given = {"Origin": "https://my.example", "Sec-Fetch-Site": "cross-site"}
    for headers in (own, given):
        assert client.post("/v1/caption", json=REGION, headers=headers).status_code == 200
    assert client.get("/docs", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}).is_success
    for mode in ("no-cors", "cors", "websocket"):
        headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": mode}
        assert client.get("/v1/models/sca-tiny", headers=headers).status_code == 403


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data", "x/json"]
)
def test_regions_are_taken_as_json_only(server, kind):
    status, answer = post(server[1], **{"Content-Type": kind})
    assert status == 415 and "application/json" in json.loads(answer)["error"]


@pytest.mark.parametrize(
    ("kind", "status"),
    [("", 201), ("image/png", 201), ("application/octet-stream", 201), ("application/x-www-form-urlencoded", 201)]
    + [("text/plain", 415), ("multipart/form-data; boundary=x", 415), ("text/html", 415)],
)
def test_a_picture_may_be_a_body(engine, kind, status):
    client = TestClient(create_app(engine))
    assert (
        client.post("/v1/images", content=b64decode(picture()), headers={"Content-Type": kind}).status_code == status
    )


# What would cost much


def tall():
    """A PNG of 93 KB and 1 x 24,000,000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 24_000_000, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0\x80" * 24_000_000, 9))
    return b64encode(b"\x89PNG\r\n\x1a\n" + head + data + chunk(b"IEND", b"")).decode()


def rest(text):
    return f'{{"image": "{picture()}", {text}}}'


COSTLY = {
    "regions": lambda: rest(f'"regions": [{",".join(["{}"] * 10**6)}]'),
    "regions of the limit's size": lambda: rest(f'"regions": [{",".join(["{}"] * 240_000)}]'),
    "numbers": lambda: rest(f'"regions": [{{"box": [{",".join(["1"] * 8 * 10**6)}]}}]'),
    "lists": lambda: rest(f'"regions": [{{"box": [{",".join(["[]"] * 8 * 10**6)}]}}]'),
    "fields": lambda: rest(",".join(f'"a{number}": 1' for number in range(10**6))),
    "fewer fields": lambda: rest(",".join(f'"a{number}": 1' for number in range(240_000))),
    "own keys": lambda: rest(
        f'"regions": [{{"box": [1, 1, 9, 9], {",".join(f"{json.dumps(str(n))}: 1" for n in range(240_000))}}}]'
    ),
    "points": lambda: rest(f'"regions": [{{"points": [{",".join(["[1,1]"] * 160_000)}]}}]'),
    "counts": lambda: rest(f'"regions": [{{"mask": {{"size": [64, 64], "counts": [{",".join(["0"] * 490_000)}]}}}}]'),
    "a mask of 10^9 pixels": lambda: rest(
        '"regions": [{"mask": {"size": [32768, 32768], "counts": [0, 1073741824]}}]'
    ),
    "a long picture": lambda: f'{{"image": "{tall()}", "regions": [{{"box": [0, 0, 1, 100]}}]}}',
    "a wide picture": lambda: f'{{"image": "{picture(40_000, 2)}", "regions": [{{"box": [0, 0, 1, 1]}}]}}',
    "beams": lambda: rest(f'"num_beams": 8, "regions": {json.dumps([{"box": [1, 1, 60, 60]}] * 128)}'),
    "tokens": lambda: rest(
        f'"num_beams": 3, "max_new_tokens": 42, "regions": {json.dumps([{"box": [1, 1, 60, 60]}] * 100)}'
    ),
    "a text of 32 MB": lambda: rest(f'"regions": [{{"box": "{"x" * 30_000_000}"}}]'),
    "a number of 10^6 digits": lambda: rest(f'"regions": [{{"box": [0, 0, 1, {"9" * 10**6}]}}]'),
    "depth": lambda: rest(f'"regions": {"[" * 200_000}{"]" * 200_000}'),
}


@pytest.mark.parametrize("kind", COSTLY)
def test_a_refusal_costs_at_most_300_mib_and_5_seconds_and_others_are_answered(server, kind):
    process, address = server
    before, body = memory(process)[0], COSTLY[kind]().encode()
    pauses, over = [], threading.Event()

    def look():
        while not over.is_set():
            began = time.monotonic()
            assert urllib.request.urlopen(f"{address}/health", timeout=60).status == 200
            pauses.append(time.monotonic() - began)

    other = threading.Thread(target=look)
    other.start()
    began = time.monotonic()
    status, answer = post(address, body=body)
    spent = time.monotonic() - began
    over.set()
    other.join()
    assert status in (400, 413, 422) and json.loads(answer)["error"] and len(answer) < 1000
    assert spent < 5 and max(pauses) < 1, (spent, max(pauses))
    assert memory(process)[1] - before < 300, (before, memory(process))


@pytest.mark.slow
def test_many_large_pictures_at_once_are_held_within_a_limit_and_their_memory_is_given_back():
    body = json.dumps({"image": picture(4800, 4900), "regions": [{"box": [1, 1, 90, 90]}]}).encode()
    with running() as (process, address), ThreadPoolExecutor(40) as pool:
        before = memory(process)[0]
        statuses = [status for status, _ in pool.map(lambda _: post(address, body=body), range(40))]
        assert set(statuses) == {200, 429}
        assert memory(process)[1] - before < 3000, "without a limit seven gigabytes"
        wait_for(lambda: memory(process)[0] - before < 300, 30)


# What lasts


def test_a_body_that_does_not_arrive_in_time_ends_with_a_sentence(server):
    for sent in (b"", b'{"image": "'):
        with connect(server[1], "POST /v1/caption", sent, claimed=1000) as link:
            began = time.monotonic()
            answer = link.makefile("rb").read()
            assert b" 408 " in answer.splitlines()[0] and b"did not arrive within 2 s" in answer
            assert 1 < time.monotonic() - began < 8


@pytest.mark.slow
def test_a_connection_on_which_nothing_is_asked_is_closed(server):
    links = [connect(server[1], "GET /health")]
    assert b'"status"' in links[0].recv(4096)
    for part in (b"", b"GET /hea", b"GET /health HTTP/1.1\r\nX: "):
        links.append(socket.create_connection(links[0].getpeername()))
        links[-1].sendall(part)
    began = time.monotonic()
    for link in links:
        link.settimeout(40)
        try:
            link.sendall(b"x")
            assert not link.recv(4096) or not link.recv(4096)
        except OSError as error:
            assert not isinstance(error, TimeoutError)
        link.close()
    assert time.monotonic() - began < 35


@pytest.mark.slow
def test_an_answer_that_nobody_reads_is_given_up(server):
    place = server[1].removeprefix("http://")
    with socket.socket() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.connect((place.split(":")[0], int(place.split(":")[1])))
        # Many answers on one connection, until no buffer takes more.
        link.sendall(f"GET /openapi.json HTTP/1.1\r\nHost: {place}\r\n\r\n".encode() * 700)
        time.sleep(75)
        link.settimeout(30)
        seen = 0
        while part := link.recv(1 << 20):  # what was on its way; then it ends
            seen += len(part)
        assert 100_000 < seen < 700 * 15_000


@pytest.mark.parametrize(
    ("path", "more"), [("/v1/anything", {"points_per_side": 32, "crop_n_layers": 1}), ("/v1/caption", {})]
)
def test_work_stops_where_its_client_has_left(server, path, more):
    address = server[1]
    body = {"image": picture(700, 500)} | more
    if path == "/v1/caption":
        body |= {"regions": [{"box": [1, 1, 600, 400]}] * 128, "max_new_tokens": 40, "all_masks": True}
    calls = metric(address, "requests_total")
    with connect(address, f"POST {path}", json.dumps(body).encode()):
        wait_for(lambda: metric(address, "encodings_total") > 0, 30)
        time.sleep(0.3)
    began = time.monotonic()
    assert post(address)[0] == 200
    assert time.monotonic() - began < 5
    wait_for(lambda: metric(address, "waiting") == 0, 5)
    assert metric(address, "requests_total") == calls + 1, "what nobody waited for was not finished"


def test_those_who_shared_a_call_with_a_client_that_left_get_their_answer(engine):
    image, region = engine.open_base64(picture()), [RegionPrompt(box=[5, 5, 50, 50])]
    expected = engine.submit(image, region).result()
    blocked, release, left = threading.Event(), threading.Event(), threading.Event()
    first = engine.submit(image, region, on_tokens=lambda _: (blocked.set(), release.wait(30)))
    assert blocked.wait(60)
    token = client_left.set(left)
    gone = engine.submit(image, region)
    client_left.reset(token)
    there = engine.submit(image, region)
    left.set()
    release.set()
    assert there.result(60) == expected and first.result(60)
    with pytest.raises(ClientLeftError):
        gone.result(60)


def test_many_regions_of_one_client_take_turns_with_others_and_are_the_same(engine):
    image, order = engine.open_base64(picture(96, 80)), []
    regions = [RegionPrompt(box=[1, 1, 20 + number, 60]) for number in range(50)]
    alone = [engine.submit(image, [region]).result()[0] for region in regions]
    calls = engine.counts["calls"]
    many, one = engine.submit(image, regions), engine.submit(image, regions[:1], generation={"num_beams": 2})
    for name, future in (("many", many), ("one", one)):
        future.add_done_callback(lambda _, name=name: order.append(name))
    found = many.result(60)
    assert order == ["one", "many"] and engine.counts["calls"] - calls == 5
    assert [record["caption"] for record in found] == [record["caption"] for record in alone]
    assert [record["mask"] for record in found] == [record["mask"] for record in alone]


def test_captions_stop_at_the_next_token(engine):
    left, seen = threading.Event(), []
    token = client_left.set(left)

    def tell(captions):
        seen.append(captions)
        if len(seen) == 2:
            left.set()

    options = {"max_new_tokens": 20}
    future = engine.submit(
        engine.open_base64(picture()), [RegionPrompt(box=[5, 5, 50, 50])], generation=options, on_tokens=tell
    )
    client_left.reset(token)
    with pytest.raises(ClientLeftError):
        future.result(60)
    assert len(seen) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["serve", "demo"])
def test_it_ends_in_10_seconds_whatever_clients_do(command, number):
    if command == "demo":
        pytest.importorskip("gradio", reason="the extra demo is not installed")
    with running(command=command) as (process, address):
        heavy = json.dumps({"image": picture(700, 500), "points_per_side": 32, "crop_n_layers": 1}).encode()
        links = [connect(address, "POST /v1/anything", heavy) for _ in range(3)]
        links += [
            connect(address, "POST /v1/caption", b"{", claimed=1000),
            socket.create_connection(links[0].getpeername()),
        ]
        time.sleep(1)
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(20) == 0
        assert time.monotonic() - began < 10
        assert "Traceback" not in process.stderr.read()
        for link in links:
            link.close()


def test_a_second_signal_does_not_wait():
    with running() as (process, address):
        link = connect(address, "POST /v1/caption", b"{", claimed=1000)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0 and time.monotonic() - began < 4
        link.close()
