"""Who may use a server: everyone on this machine, and of others those who have its token."""

import base64
import binascii
import hmac
import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Any


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        found = socket.getaddrinfo(host or None, None, flags=socket.AI_PASSIVE)
    except socket.gaierror:
        return False
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def check_access(host: str, token: str | None, no_auth: bool) -> None:
    """Raises ValueError where everyone could use a server without anybody's having decided it."""
    if token is not None and no_auth:
        raise ValueError("--no-auth and a token (--token, SCA_TOKEN) cannot be combined.")
    if token is not None and not re.fullmatch(r"[A-Za-z0-9._~+/-]{8,}=*", token):
        raise ValueError(
            "a token must have 8 or more letters, digits and -._~+/, for instance from `openssl rand -hex 16`."
        )
    if token is None and not no_auth and not is_loopback(host):
        raise ValueError(
            f"others can reach {host}: set a token with SCA_TOKEN or --token, or pass --no-auth to serve everyone."
        )


class TokenAuth:
    """Answers requests without the token with 401; it comes as a bearer token, or as the password of a browser.

    Args:
        app: the ASGI application behind it.
        token: the token.
        open_paths: paths that need none.
    """

    def __init__(self, app: Any, token: str, open_paths: Sequence[str] = ()) -> None:
        self._app, self._token, self._open = app, token.encode(), frozenset(open_paths)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] not in ("http", "websocket") or scope["path"] in self._open or self._is_known(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            from starlette.responses import JSONResponse  # takes time to import, and the checks above need none of it

            error = "This server requires a token: send the header `Authorization: Bearer TOKEN`."
            refusal = JSONResponse({"error": error}, 401)
            refusal.headers.append("WWW-Authenticate", 'Bearer realm="sca-hf"')
            refusal.headers.append("WWW-Authenticate", 'Basic realm="sca-hf"')
            await refusal(scope, receive, send)

    def _is_known(self, scope: Any) -> bool:
        kind, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"basic":
            try:
                given = base64.b64decode(given).partition(b":")[2]
            except binascii.Error:
                return False
        elif kind.lower() != b"bearer":
            return False
        return hmac.compare_digest(given.strip(), self._token)
