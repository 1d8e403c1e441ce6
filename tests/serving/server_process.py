"""`sca-hf serve` as a process, and raw requests to it."""

import base64
import io
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from urllib.parse import urlsplit

from PIL import Image


def start(*arguments, command="serve", **environment):
    """Starts a server; returns its process and its address once it answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sca_hf", command, "--port", "0", "--device", "cpu", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    (address,) = re.findall(r"at (http://[^\s,]+),", process.stdout.readline())
    return process, address


@contextmanager
def running(*arguments, **options):
    """A server that is gone afterwards."""
    process, address = start(*arguments, **options)
    try:
        yield process, address
    finally:
        process.kill()
        process.communicate()


def connect(address, head, body=b"", claimed=None, header="Accept: */*"):
    """Opens a connection and sends a request of which the body may be a part only."""
    place = urlsplit(address)
    link = socket.create_connection((place.hostname, place.port), timeout=60)
    length = len(body) if claimed is None else claimed
    link.sendall(f"{head} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Length: {length}\r\n".encode())
    link.sendall(f"Content-Type: application/json\r\n{header}\r\n\r\n".encode() + body)
    return link


def metric(address, name):
    with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:
        return float(re.search(rf"(?m)^sca_{name} (\S+)$", answer.read().decode()).group(1))


def wait_for(condition, seconds):
    """Waits until something is so; returns after how many seconds it was."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.02)
    return time.monotonic() - began


def picture(width=64, height=64, format="PNG"):
    """The base64 of a plain picture."""
    buffer = io.BytesIO()
    Image.new("L", (width, height), 128).save(buffer, format)
    return base64.b64encode(buffer.getvalue()).decode()


def memory(process):
    """Resident and peak memory of a process, MiB."""
    with open(f"/proc/{process.pid}/status") as file:
        found = dict(line.split(":", 1) for line in file if line.startswith(("VmRSS", "VmHWM")))
    return tuple(int(found[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
