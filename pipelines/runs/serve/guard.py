"""Who may talk to the page: which hosts and origins; and the headers of every answer.

A web site that is open in the same browser can send requests to this machine. It can do so under
its own name (then Origin and Sec-Fetch-Site tell), or under a name of its own that it lets point
here (DNS rebinding; then Host tells). Either is refused. Programs send no such headers.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Headers that keep a browser careful with an answer: no guessing of its type, no copy on disk,
# no use by pages of other origins, no frame around it.
CAREFUL = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
]


class Guard:
    """An ASGI application around another one.

    It lets through what comes from this machine's own page or from a program. Every answer, a
    refusal too, has the headers of CAREFUL.
    """

    def __init__(self, app: ASGIApp, host: str):
        self.app = app
        self.host = host.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_carefully(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *CAREFUL]
            await send(message)

        refusal = self.refusal(_headers(scope))
        if refusal is None:
            await self.app(scope, receive, send_carefully)
        else:
            from starlette.responses import JSONResponse

            response = JSONResponse({"error": refusal}, 403)
            await response(scope, receive, send_carefully)

    def refusal(self, headers: dict[str, str]) -> str | None:
        """Why a request is refused, or None. Names of headers are in lower case."""
        host = headers.get("host", "")
        if not self.is_own(host):
            return f"this page answers to its own address only, not to '{host:.80}'"
        origin = headers.get("origin")
        if origin is not None and _place_of(origin) != host.lower():
            return (
                "requests from pages of other origins are refused;"
                f" this one comes from '{origin:.80}'"
            )
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "requests from pages of other origins are refused"
        return None

    def is_own(self, host: str) -> bool:
        """Whether a Host header names this server.

        A name that points here from outside (DNS rebinding) does not. A number does, where the
        server listens on more than this machine's own address.
        """
        name = _name_in(host)
        if name is None:
            return False
        if name in ("localhost", self.host):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not _is_loopback(self.host)


def _place_of(origin: str) -> str | None:
    """The host and port of an Origin header in lower case; None where it is no address."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _headers(scope: Scope) -> dict[str, str]:
    headers = {}
    for name, value in scope["headers"]:
        headers[name.decode("latin1").lower()] = value.decode("latin1")
    return headers


def _name_in(host: str) -> str | None:
    """The name or number in a Host header, without the port; None where it is anything else."""
    try:
        parts = urlsplit(f"//{host}")
        name = (parts.hostname or "").lower()
        _ = parts.port  # raises where it is not a number
    except ValueError:
        return None
    if parts.netloc != host or parts.username or parts.path:
        return None
    return name


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
