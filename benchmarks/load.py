"""Many clients of one server for some minutes: errors, mixed-up answers, times, memory.

python -m benchmarks.load --clients 20 --seconds 300
python -m benchmarks.load --clients 10 --pages 10 --seconds 300  # pages: tabs of Chromium, each a session of its own
"""

import argparse
import asyncio
import base64
import io
import json
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from sca_hf.data.scenes import scenes


PICTURES = 8
# MiB per minute, after a third of the time; the allocator settles until then.
FLAT = 1.0


class Clients:
    """Threads that ask for regions of their own pictures, and compare each answer with the first one of its kind."""

    def __init__(self, url: str, clients: int, seconds: float) -> None:
        self.url, self.until = url, time.monotonic() + seconds
        self.expected: dict[tuple[int, int], str] = {}
        self.pointed: dict[tuple[int, int], str] = {}
        self.seconds: list[float] = []
        self.errors: list[str] = []
        self.mixed = 0
        self.lock = threading.Lock()
        self.scenes = list(scenes("test", PICTURES, 100))
        self.images = [self._image(number) for number in range(PICTURES)]
        self.threads = [threading.Thread(target=self.run, args=(number,)) for number in range(clients)]

    def _image(self, number: int) -> str:
        buffer = io.BytesIO()
        self.scenes[number].to_pil().save(buffer, "PNG")
        return base64.b64encode(buffer.getvalue()).decode()

    def learn(self) -> None:
        """Asks for every region by itself, with no one else around."""
        for picture, scene in enumerate(self.scenes):
            for region in range(len(scene.objects)):
                self.expected[picture, region] = json.dumps(self.record_of(picture, region))
                point = {"points": [list(scene.objects[region].point)]}
                self.pointed[picture, region] = self.record_of(picture, region, point)[0]

    def record_of(self, picture: int, region: int, prompt: Any = None) -> list[Any]:
        """The record of one region, by its box if nothing else is said."""
        prompt = prompt or {"box": list(self.scenes[picture].objects[region].box)}
        body = {"image": self.images[picture], "regions": [prompt]}
        request = urllib.request.Request(
            self.url + "/v1/caption", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            record = json.load(answer)["regions"][0]
        # Rounding differs with the company in a batch, and a mask by a pixel with it.
        return [record["caption"], round(record["score"], 3), round(record["iou"], 3)]

    def run(self, number: int) -> None:
        """Asks again and again until the time is over."""
        chance = random.Random(number)
        while time.monotonic() < self.until:
            picture, region = chance.choice(list(self.expected))
            began = time.monotonic()
            try:
                answer = json.dumps(self.record_of(picture, region))
            except (OSError, urllib.error.HTTPError) as error:
                with self.lock:
                    self.errors.append(str(error))
                continue
            with self.lock:
                self.seconds.append(time.monotonic() - began)
                self.mixed += answer != self.expected[picture, region]
            time.sleep(chance.uniform(0, 0.2))


class Pages:
    """Sessions of the page in a browser, each with a picture of its own, that point at things and read what they are.

    Args:
        clients: what is to be read; errors, times and mixed-up answers are noted there.
    """

    def __init__(self, clients: Clients, pages: int) -> None:
        self.clients, self.pages = clients, pages
        self.seconds: list[float] = []

    def run(self) -> None:
        """Until the clients' time is over."""
        asyncio.run(self._all())

    async def _all(self) -> None:
        from playwright.async_api import async_playwright

        async with async_playwright() as driver:
            chromium = shutil.which("chromium") or shutil.which("google-chrome")
            browser = await driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            await asyncio.gather(*(self._session(browser, number) for number in range(self.pages)))
            await browser.close()

    async def _session(self, browser: Any, number: int) -> None:
        chance, picture = random.Random(number), number % PICTURES
        scene = self.clients.scenes[picture]
        try:
            context = await browser.new_context(viewport={"width": 1000, "height": 900})
            tab = await context.new_page()
            tab.set_default_timeout(120_000)
            tab.on("pageerror", lambda error: self.clients.errors.append(f"page: {error}"))
            await tab.goto(self.clients.url, wait_until="domcontentloaded")
            await tab.wait_for_selector(".sca[data-ready]")
            file = {"name": "scene.png", "mimeType": "image/png"}
            buffer = base64.b64decode(self.clients.images[picture])
            await tab.set_input_files('[data-id="file"]', {**file, "buffer": buffer})
            await tab.wait_for_selector("canvas:not([hidden])")
            while time.monotonic() < self.clients.until:
                await self._click(tab, scene, picture, chance.randrange(len(scene.objects)))
                await asyncio.sleep(chance.uniform(0.5, 2))
            await context.close()
        except Exception as error:  # noqa: BLE001, whatever a session meets is what this looks for
            self.clients.errors.append(f"page {number}: {error}")

    async def _click(self, tab: Any, scene: Any, picture: int, region: int) -> None:
        bounds = await tab.locator("canvas").bounding_box()
        (x, y), (height, width) = scene.objects[region].point, scene.labels.shape
        began = time.monotonic()
        place = bounds["x"] + bounds["width"] * x / width, bounds["y"] + bounds["height"] * y / height
        await tab.mouse.click(*place)
        await tab.wait_for_function(
            "() => document.querySelectorAll('.regions .numbers').length === 1"
            " && !document.querySelector('.regions .caption').textContent.endsWith('…')"
        )
        self.seconds.append(time.monotonic() - began)
        said = await tab.inner_text(".regions .caption")
        self.clients.mixed += said != self.clients.pointed[picture, region]
        await tab.click('[data-act="clear"]')
        await tab.wait_for_function("() => !document.querySelector('.regions .numbers')")


def resident_mib(process: int) -> float:
    """What a process holds in memory (Linux)."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096 / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--pages", type=int, default=0, help="sessions of the page, beside the clients")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--port", type=int, default=8123)
    options = parser.parse_args()
    served = "demo" if options.pages else "serve"  # the page's server has the HTTP interface too
    command = [sys.executable, "-m", "sca_hf", served, "--port", str(options.port), "--device", "cpu"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{options.port}"
    try:
        while True:
            try:
                urllib.request.urlopen(url + "/health", timeout=2).close()
                break
            except OSError:
                if server.poll() is not None:
                    raise RuntimeError("the server ended") from None
                time.sleep(0.5)
        clients = Clients(url, options.clients, options.seconds)
        clients.learn()
        clients.until = time.monotonic() + options.seconds
        began, memory, pages = time.monotonic(), [], Pages(clients, options.pages)
        if options.pages:
            clients.threads.append(threading.Thread(target=pages.run))
        for thread in clients.threads:
            thread.start()
        while any(thread.is_alive() for thread in clients.threads):
            memory.append((time.monotonic() - began, resident_mib(server.pid)))
            time.sleep(1)
    finally:
        server.terminate()
    settled = [point for point in memory if point[0] > options.seconds / 3]
    slope = 60 * float(np.polyfit(*zip(*settled, strict=True), 1)[0])
    print(f"{options.clients} clients and {options.pages} pages, {options.seconds:g} s")
    print(f"errors: {len(clients.errors)} {clients.errors[:3]}; answers of someone else: {clients.mixed}")
    for kind, seconds in (("answers", clients.seconds), ("clicks on pages", pages.seconds)):
        if len(seconds) > 1:
            late = statistics.quantiles(seconds, n=20)[-1]
            print(f"seconds of {len(seconds)} {kind}: p50 {statistics.median(seconds):.2f}, p95 {late:.2f}")
    tenths = [f"{held:.0f}" for _, held in memory[:: max(1, len(memory) // 10)]]
    print(f"memory: {slope:+.2f} MiB per minute after a third of the time; MiB at each tenth: {' '.join(tenths)}")
    return int(bool(clients.errors or clients.mixed or slope > FLAT))


if __name__ == "__main__":
    sys.exit(main())
