"""What every request passes before the application sees it: who may ask, from where, how much, and for how long.

A page of another site, open in the same browser, can send requests to a server on this machine. Its requests carry its
own origin, or a name of its own for this machine (DNS rebinding), or a type that browsers send without asking.
"""

import asyncio
import ipaddress
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from starlette.responses import JSONResponse

from .access import is_loopback
from .limits import Limits, RequestError, client_left


Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
# Where a picture's file may be the body itself. The last is what curl says of `--data-binary`.
_FILES = "/v1/images"
_FILE_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")


_ADDRESS = re.compile(r"(\[[\da-f:.]+\]|[^\s:/@\[\]]+)(?::\d*)?")


class Gate:
    """Refuses what pages of other sites can have a browser send.

    Args:
        app: the ASGI application behind it.
        hosts: names under which the server is known, "*" for any; None looks at no names.
        bound: address that the server listens on, which is such a name too.
    """

    def __init__(self, app: Any, hosts: Sequence[str] | None = None, bound: str = "127.0.0.1") -> None:
        self._app, self._any = app, hosts is None or "*" in hosts
        self._given = {host.lower() for host in hosts or ()}
        self._bound, self._local = bound.lower(), is_loopback(bound)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with 403 or 415."""
        known = scope["type"] == "lifespan" or "sca_hf.gate" in scope  # where one stands before another, it decides
        fault = None if known else self._fault(scope)
        scope["sca_hf.gate"] = True
        if fault is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await JSONResponse({"error": fault[1]}, fault[0])(scope, receive, send)

    def _fault(self, scope: Any) -> tuple[int, str] | None:
        headers = {name: value.decode("latin-1").strip().lower() for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if not (self._any or self._is_known(_name(host))):
            return 403, "This server has another name; add a name of yours to it with --allow-host."
        address = "" if origin is None else origin.partition("://")[2]
        foreign = origin is not None and address != host and _name(address) not in self._given
        # Only a link that is followed may come from elsewhere, and it has no origin.
        asked = headers.get(b"sec-fetch-site") in ("cross-site", "same-site")
        if foreign or (origin is None and asked and headers.get(b"sec-fetch-mode") != "navigate"):
            return 403, "Pages of other sites cannot use this server; add the name of one with --allow-host."
        kind = headers.get(b"content-type", "").partition(";")[0].strip()
        if scope.get("method") != "POST" or kind == "application/json" or kind.endswith("+json"):
            return None
        if scope["path"] == _FILES and (kind in _FILE_TYPES or kind.startswith("image/")):
            return None
        return 415, "Send JSON, with the header `Content-Type: application/json`; only pictures are sent as files."

    def _is_known(self, name: str) -> bool:
        if name in {"", "localhost", self._bound, *self._given} or name.endswith(".localhost"):
            return True
        try:  # A page that names this machine by a number is known by its origin.
            return ipaddress.ip_address(name).is_loopback or not self._local
        except ValueError:
            return not self._local and name == socket.gethostname().lower()


def _name(address: str) -> str:
    found = _ADDRESS.fullmatch(address)
    return found[1].strip("[]").rstrip(".") if found else address


class Bodies:
    """Takes the body of a request within limits before the application begins, and tells when its client leaves.

    Bytes and values are counted while nothing is parsed yet: a refusal takes no more memory than the bytes that came
    (at most twice `limits.file_bytes`), and no more time than `limits.body_seconds`.

    Args:
        app: the ASGI application behind it.
        limits: `file_bytes`, `json_values` and `body_seconds` count here.
    """

    def __init__(self, app: Any, limits: Limits) -> None:
        self._app, self._limits, self._bytes = app, limits, 2 * limits.file_bytes

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with 408, 413, or where the server ends with 503."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._body(receive, dict(scope["headers"]))
            await self._pass_on(scope, receive, send, body)
        except RequestError as error:
            refusal = JSONResponse({"error": str(error)}, error.status)
            if error.status == 408:
                refusal.headers["Connection"] = "close"  # the rest of it is not read
            await refusal(scope, receive, send)
        except asyncio.CancelledError:
            with suppress(RuntimeError):  # the answer may have begun
                await JSONResponse({"error": "The server is ending."}, 503)(scope, receive, send)

    async def _body(self, receive: Receive, headers: dict[bytes, bytes]) -> bytes:
        told = headers.get(b"content-length", b"0")
        parts: list[bytes] = []
        seen, more = 0, not told.isdigit() or int(told) <= self._bytes
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while more and seen <= self._bytes:
                    message = await receive()
                    parts.append(message.get("body", b""))
                    seen, more = seen + len(parts[-1]), message.get("more_body", False)
        except TimeoutError:
            raise RequestError(f"The request did not arrive within {self._limits.body_seconds} s.", 408) from None
        if seen > self._bytes or not parts:
            raise RequestError(f"The request is too large; at most {self._bytes} bytes are taken.", 413)
        body = b"".join(parts)
        values = sum(map(body.count, (b"{", b"[", b","))) if b"json" in headers.get(b"content-type", b"") else 0
        if values > self._limits.json_values:
            raise RequestError(f"The request has {values} values; the limit is {self._limits.json_values}.", 413)
        return body

    async def _pass_on(self, scope: Any, receive: Receive, send: Send, body: bytes) -> None:
        left, gone = threading.Event(), asyncio.Event()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            left.set()
            gone.set()

        async def replay() -> Any:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        token, watcher = client_left.set(left), asyncio.create_task(watch())
        try:
            await self._app(scope, replay, send)
        finally:
            # Also where the server ends before the answer does: what works on it stops.
            left.set()
            watcher.cancel()
            client_left.reset(token)
