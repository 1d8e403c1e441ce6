"""Clients of all kinds at one server for some minutes: fast, slow, silent, too large, leaving, of foreign sites.

python -m benchmarks.mixed_load --seconds 180

Fast clients are first measured alone; then all kinds come at once. No answer may be wrong, or somebody else's; the
95th percentile of the fast ones is at most three times that alone; memory grows by at most 150 MiB; SIGTERM ends it
in 10 s.
"""

import argparse
import json
import random
import signal
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

from tests.serving.server_process import connect, memory, running

from .load import Clients


SLOWER, MORE_MEMORY, END = 3.0, 150.0, 10.0
# Of 200 clients.
KINDS = {"fast": 30, "slow": 40, "silent": 40, "large": 20, "leaving": 40, "foreign": 30}

# What takes long.
HEAVY = {
    "/v1/anything": {"points_per_side": 32, "crop_n_layers": 1},
    "/v1/caption": {"regions": [{"box": [1, 1, 90, 90]}] * 100, "max_new_tokens": 40, "all_masks": True},
}


class Crowd:
    """Everyone else: each kind is a method that meets the server once, and says what was wrong."""

    def __init__(self, clients: Clients) -> None:
        self.clients, self.until = clients, 0.0
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.many = b'{"image": "", "regions": [' + b",".join([b"{}"] * 300_000) + b"]}"

    def run(self, kind: str, number: int) -> None:
        """Meets the server again and again until the time is over."""
        chance = random.Random(f"{kind} {number}")
        meet: Callable[[random.Random], None] = getattr(self, kind)
        while time.monotonic() < self.until:
            try:
                meet(chance)
                self.seen[kind] += 1
            except OSError as error:
                if time.monotonic() < self.until:
                    self.wrong.append(f"{kind}: {error!r}")
            time.sleep(chance.uniform(0.5, 3))

    def body(self, chance: random.Random) -> tuple[bytes, str]:
        """A request, and the answer that it has to get."""
        (picture, region), expected = chance.choice(list(self.clients.expected.items()))
        box = list(self.clients.scenes[picture].objects[region].box)
        return json.dumps({"image": self.clients.images[picture], "regions": [{"box": box}]}).encode(), expected

    def slow(self, chance: random.Random) -> None:
        """Sends its request over some seconds, and reads the answer as slowly."""
        body, expected = self.body(chance)
        with connect(self.clients.url, "POST /v1/caption", body[:10], claimed=len(body)) as link:
            for start in range(10, len(body), len(body) // 8):
                time.sleep(chance.uniform(0.1, 0.6))
                link.sendall(body[start : start + len(body) // 8])
            status, answer = answer_of(link, pause=0.1)
        if status == 200:
            record = answer["regions"][0]
            found = json.dumps([record["caption"], round(record["score"], 3), round(record["iou"], 3)])
            self.clients.mixed += found != expected
        elif status != 429:
            self.wrong.append(f"slow: {status} {answer}")

    def silent(self, chance: random.Random) -> None:
        """Says nothing, or a part of something, and waits."""
        begin = chance.choice([b"", b"POST /v1/cap", b"GET / HTTP/1.1\r\nHost: localhost\r\n"])
        with socket.create_connection(self.clients.address) as link:
            link.sendall(begin)
            time.sleep(chance.uniform(5, 40))

    def large(self, chance: random.Random) -> None:
        """Asks for too much: bytes, values or beams."""
        many = json.dumps({"image": "", "regions": [{"box": [1, 1, 9, 9]}] * 128, "num_beams": 8}).encode()
        body, claimed = chance.choice([(self.many, None), (b"{", 10**9), (many, None)])
        with connect(self.clients.url, "POST /v1/caption", body, claimed=claimed) as link:
            self.expect("large", answer_of(link)[0], 413, 422)

    def leaving(self, chance: random.Random) -> None:
        """Asks for what takes long, and leaves."""
        image = self.clients.images[0]
        path, body = chance.choice(list(HEAVY.items()))
        with connect(self.clients.url, f"POST {path}", json.dumps({"image": image, **body}).encode()):
            time.sleep(chance.uniform(0, 0.5))

    def foreign(self, chance: random.Random) -> None:
        """Comes from a page of another site, or calls the server by another name."""
        body, _ = self.body(chance)
        header = chance.choice(["Origin: https://evil.example", "Sec-Fetch-Site: cross-site"])
        with connect(self.clients.url, "POST /v1/caption", body, header=header) as link:
            self.expect("foreign", answer_of(link)[0], 403)

    def expect(self, kind: str, status: int, *allowed: int) -> None:
        if status not in allowed:
            self.wrong.append(f"{kind}: status {status}")


def answer_of(link: socket.socket, pause: float = 0.0) -> tuple[int, dict]:
    """Status and JSON of an answer."""
    with link.makefile("rb") as file:
        status = int(file.readline().split()[1])
        length = 0
        while (line := file.readline().strip().lower()) != b"":
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        parts = []
        while length > sum(map(len, parts)):
            parts.append(file.read(min(1 << 14, length - sum(map(len, parts)))))
            time.sleep(pause)
    return status, json.loads(b"".join(parts))


def fast(clients: Clients, count: int, seconds: float) -> list[float]:
    """Seconds of the answers that fast clients got."""
    clients.seconds, clients.until = [], time.monotonic() + seconds
    threads = [threading.Thread(target=clients.run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return clients.seconds


def late(seconds: list[float]) -> float:
    """The 95th percentile."""
    return statistics.quantiles(seconds, n=20)[-1]


def measure(seconds: float, share: float = 1.0, model: str = "sca-tiny") -> dict[str, float | list[str]]:
    """Runs all kinds; returns the figures.

    Args:
        seconds: for all kinds together; fast ones alone get a quarter.
        share: of 200 clients.
        model: that is served.
    """
    counts = {kind: max(1, round(count * share)) for kind, count in KINDS.items()}
    with running("--model", model) as (process, address):
        clients = Clients(address, 0, 0)
        host, port = address.removeprefix("http://").split(":")
        clients.address = (host, int(port))
        clients.learn()
        # What each kind of work takes once belongs to the start.
        for path, body in HEAVY.items():
            with connect(address, f"POST {path}", json.dumps({"image": clients.images[0], **body}).encode()) as link:
                answer_of(link)
        alone = fast(clients, counts["fast"], seconds / 4)
        before, crowd = memory(process)[0], Crowd(clients)
        crowd.until = time.monotonic() + seconds
        threads = [
            threading.Thread(target=crowd.run, args=(kind, number))
            for kind, count in counts.items()
            if kind != "fast"
            for number in range(count)
        ]
        for thread in threads:
            thread.start()
        among = fast(clients, counts["fast"], seconds)
        after = memory(process)[0]
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        end = time.monotonic() - began
        for thread in threads:
            thread.join()
    refused = [error for error in clients.errors if "429" in error]
    others = [error for error in clients.errors if "429" not in error]
    return {
        "p95 alone": late(alone),
        "p95 among all": late(among),
        "answers": len(among),
        "answers with 429": len(refused),
        "of somebody else": clients.mixed,
        "MiB before": before,
        "MiB after": after,
        "seconds to end": end,
        "exit code": code,
        "wrong": [*crowd.wrong, *others],
        **{f"requests, {kind}": crowd.seen[kind] for kind in counts if kind != "fast"},
    }


def faults(found: dict) -> list[str]:
    """What was not as it should be."""
    wrong = list(found["wrong"])
    if found["of somebody else"]:
        wrong.append(f"{found['of somebody else']} answers of somebody else")
    if found["p95 among all"] > SLOWER * found["p95 alone"]:
        wrong.append("fast clients waited too long")
    if found["MiB after"] - found["MiB before"] > MORE_MEMORY:
        wrong.append("memory grew")
    if found["seconds to end"] > END or found["exit code"]:
        wrong.append("it did not end in time")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mixed_load", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--share", type=float, default=1.0, help="of 200 clients")
    parser.add_argument("--model", default="sca-tiny", help="that is served (%(default)s, which the limits are for)")
    options = parser.parse_args()
    found = measure(options.seconds, options.share, options.model)
    for name, value in found.items():
        print(f"{name}: {value:.2f}" if isinstance(value, float) else f"{name}: {value}")
    return int(bool(faults(found)))


if __name__ == "__main__":
    sys.exit(main())
