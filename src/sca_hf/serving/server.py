"""A process that serves an application: where it listens, and how it ends."""

import asyncio
import ctypes
import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .access import TokenAuth
from .engine import Engine
from .gate import Gate
from .limits import Limits


_M_ARENA_MAX = -8  # of glibc's malloc.h
# Seconds in which the head of a request must arrive, and in which a client must read something of its answer.
_HEAD_SECONDS, _READ_SECONDS = 30, 60


def serve_app(
    make_app: Callable[[Engine], Any],
    models: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str | None = None,
    started: Callable[[Engine, str], None] = lambda engine, address: None,
    dtype: str | None = None,
    revision: str | None = None,
    limits: Limits | None = None,
    token: str | None = None,
    open_paths: Sequence[str] = ("/health",),
    grace: int = 6,
    load_first: bool = True,
    hosts: Sequence[str] = (),
) -> None:
    """Serves an application over an engine until SIGINT or SIGTERM; requests that run then are still answered.

    It ends within `grace` and 2 seconds, whatever clients do; a second signal does not wait.

    Args:
        make_app: makes the ASGI application for the engine.
        models: see [`Engine`].
        host: address to listen on.
        port: port to listen on; 0 takes a free one. It is bound before a model is loaded.
        device: see [`Engine`].
        started: called with the engine and the server's address once it takes requests.
        dtype: see [`Engine`].
        revision: see [`Engine`].
        limits: see [`Engine`].
        token: what requests must bring, see [`TokenAuth`]; None: nothing.
        open_paths: what is answered without the token.
        grace: how long the end waits for requests that run, seconds.
        load_first: whether requests are taken only when the default model is loaded; else it is loaded meanwhile.
        hosts: names of this server beside those of this machine, "*" for any; see [`Gate`].

    Raises:
        OSError: the address is in use, or not one of this machine.
    """
    listener = bind(host, port)
    with listener:
        limit_arenas()
        engine = Engine(models, device, limits, dtype=dtype, revision=revision)
        if load_first:
            engine.model()  # the first request should not wait for it
        app = make_app(engine)
        app = Gate(app if token is None else TokenAuth(app, token, open_paths), hosts, host)
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listener.getsockname()[1]}"
        config = uvicorn.Config(app, http=_Protocol, log_level="warning", timeout_graceful_shutdown=grace)
        config.callback_notify, config.timeout_notify = _give_back, 10
        server = _Server(config, lambda: started(engine, address))
        failed = None if load_first else _load_meanwhile(engine, server)
        _run(server, listener)
        engine.close()
        if failed:
            raise failed[0]
        if not server.started:
            raise RuntimeError("the server did not start; see its log.")


class _Protocol(H11Protocol):
    """Closes a connection whose client neither asks nor reads in time; the library waits for ever."""

    _until = 0.0
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begins to wait for the head of a request."""
        super().connection_made(transport)
        self._wait(self.loop.time() + _HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        """Keeps waiting where this was not a whole head."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait(self._until)

    def on_response_complete(self) -> None:
        """Waits for the next request: for its first byte less."""
        self._until = self.loop.time() + _HEAD_SECONDS
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Begins to wait for a client that does not read."""
        super().pause_writing()
        self._unread = self.loop.call_later(_READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Stops waiting."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def _wait(self, until: float) -> None:
        self._until = until
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_at(until, self.transport.abort)


class _Server(uvicorn.Server):
    """Tells when it takes requests."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = started

    async def startup(self, sockets: Any = None) -> None:
        """Starts to listen."""
        await super().startup(sockets)
        if self.started:
            self._tell()


def _load_meanwhile(engine: Engine, server: uvicorn.Server) -> list[BaseException]:
    """Loads the default model in a thread; where that fails the server ends, and the list holds the error."""
    failed: list[BaseException] = []

    def load() -> None:
        try:
            engine.model()
        except BaseException as error:  # noqa: BLE001, raised where somebody sees it
            failed.append(error)
            server.should_exit = True

    threading.Thread(target=load, daemon=True).start()
    return failed


def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    """Runs a server; a signal that ended it is not raised again, as uvicorn would."""

    def stop(number: int, frame: Any) -> None:
        server.force_exit = server.should_exit
        server.should_exit = True

    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    former = {number: signal.signal(number, stop) for number in signals}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def end_process(seconds: float = 1.0) -> None:
    """Ends this process without waiting longer for threads that compute on; returns if there are none."""
    until = time.monotonic() + seconds
    threads = [one for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        sys.stdout.flush()
        os._exit(0)


def bind(host: str, port: int) -> socket.socket:
    """Takes an address, so that nothing is loaded for a server that has none; it does not listen yet.

    Raises:
        OSError: the address is in use, or not one of this machine.
    """
    if not 0 <= port < 1 << 16:  # the library would take what is left of it after a division
        raise OSError(f"the port is {port}, expected 0 to 65535.")
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise OSError(f"there is no address {host!r} to listen on: {error.strerror}.") from None
    family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name != "nt":  # elsewhere it means: take it from whoever has it
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        why = "it is in use; stop the program that uses it" if error.errno == errno.EADDRINUSE else error.strerror
        raise OSError(f"cannot listen on port {port} of {host}: {why}, or name another with --port.") from None
    return listener


def limit_arenas() -> bool:
    """Limits glibc to one memory arena; returns whether glibc is the C library.

    By default each of the server's many threads gets an arena of its own, which keeps freed memory: the server would
    grow for as long as some thread meets a larger request than before.
    """
    library = _glibc()
    return library is not None and library.mallopt(_M_ARENA_MAX, 1) == 1


async def _give_back() -> None:
    """Has glibc give freed memory back: after a few large pictures it would keep gigabytes."""
    if (library := _glibc()) is not None:
        await asyncio.to_thread(library.malloc_trim, 0)


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return library if hasattr(library, "gnu_get_libc_version") else None
