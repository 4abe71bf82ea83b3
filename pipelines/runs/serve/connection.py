"""A connection of `cliad serve`: how many there are at once, and how long a client may take."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from cliad.pipelines.runs.serve.request import UPLOAD_SECONDS

MOST_ANSWERED = 64  # connections; the answer to one more is 503
MOST_CONNECTIONS = 256  # one more is cut: a process may have 1,024 open files
HEAD_SECONDS = 10  # for the head of the first request
# For a request from its head to its last byte: it may wait for room, then it is uploaded.
REQUEST_SECONDS = 2 * UPLOAD_SECONDS + 15


class Connection(H11Protocol):
    """uvicorn's own, with an end: that one waits for ever for a request that never comes whole."""

    timer: asyncio.TimerHandle | None = None
    timed: Any = None  # the request that `timer` is for; None before the first one

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._allow(HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except h11.LocalProtocolError:
            # Nonsense after a request that is answered already: there is no answer to it.
            self.transport.abort()
            return
        if self.cycle is not self.timed:
            self.timed = self.cycle
            self._allow(REQUEST_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        super().connection_lost(exc)

    def _allow(self, seconds: float) -> None:
        """Give the client so long from now on."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.call_later(seconds, self._end_or_wait)

    def _end_or_wait(self) -> None:
        """Cut a client that is slow; one that waits for us may wait on."""
        if self._is_ours_to_act():
            self._allow(REQUEST_SECONDS)
        else:
            self.transport.abort()

    def _is_ours_to_act(self) -> bool:
        """Whether a request is here whole, and its answer is not held up by the client."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            return False
        return not self.flow.write_paused
