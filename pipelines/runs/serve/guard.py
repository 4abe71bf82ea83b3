"""Who may talk to the page: hosts, origins, sizes, times; and the headers of every answer."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


class Guard:
    """Lets through what comes from this machine's own page or from a program, with the headers that keep a browser careful."""

    def __init__(self, app, host: str):
        self.app, self.host = app, host.lower()

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        headers = {
            name.decode("latin1").lower(): value.decode("latin1")
            for name, value in scope["headers"]
        }
        if refusal := self.refusal(headers):
            from starlette.responses import JSONResponse

            return await JSONResponse({"error": refusal}, 403)(scope, receive, send)

        async def careful(message) -> None:
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message.get("headers", []), *CAREFUL]}
            await send(message)

        await self.app(scope, receive, careful)

    def refusal(self, headers: dict[str, str]) -> str | None:
        """Why a request is refused, or None."""
        name = headers.get("host", "")
        if not self.is_own(name):
            return f"this page answers to its own address only, not to '{name:.80}'"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != name.lower():
            return f"requests from pages of other origins are refused; this one comes from '{origin:.80}'"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "requests from pages of other origins are refused"
        return None

    def is_own(self, host: str) -> bool:
        """Whether a Host header names this server. A name that points here from outside (DNS rebinding) does not."""
        try:
            found = urlsplit(f"//{host}")
            name = (found.hostname or "").lower()
            _ = found.port
        except ValueError:
            return False
        if found.netloc != host or found.username or found.path:
            return False
        if name in ("localhost", self.host):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not _is_loopback(self.host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


CAREFUL = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
]
