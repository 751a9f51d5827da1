"""The board's clock: a deadline queue over virtual time. It never looks at a wall clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class VirtualClock:
    """Deadlines in virtual nanoseconds, fired in order of time and then of registration.

    `time_source()` gives the current virtual time; without one the clock is set by hand with `advance_to`,
    which is how tests drive a device.
    """

    def __init__(self, time_source: Callable[[], int] | None = None) -> None:
        self._time_source = time_source
        self._manual_ns = 0
        self.armed = 0  # calls asked for so far: as long as it stays, no earlier deadline has come
        self._queue: list[tuple[int, int]] = []
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self.on_change: Callable[[], None] | None = None  # told when an earlier deadline arrives

    def now_ns(self) -> int:
        """Nanoseconds of virtual time since power-on."""
        return self._manual_ns if self._time_source is None else self._time_source()

    def call_at(self, deadline_ns: int, callback: Callable[[int], None]) -> int:
        """Call `callback(now_ns)` once at `deadline_ns`; returns a token for `cancel`."""
        token = self.armed = self.armed + 1
        self._callbacks[token] = callback
        heapq.heappush(self._queue, (deadline_ns, token))
        if self.on_change is not None and self._queue[0][1] == token:
            self.on_change()
        return token

    def cancel(self, token: int) -> None:
        """Forget a call; a token that fired or was cancelled already is ignored."""
        self._callbacks.pop(token, None)

    def clear(self) -> None:
        """Forget every call (reset, snapshot restore)."""
        self._queue.clear()
        self._callbacks.clear()

    def next_deadline_ns(self) -> int | None:
        """The earliest pending deadline, or None."""
        while self._queue and self._queue[0][1] not in self._callbacks:
            heapq.heappop(self._queue)
        return self._queue[0][0] if self._queue else None

    def fire_due(self) -> None:
        """Fire every call whose deadline has come, including those that a callback adds."""
        now = self.now_ns()
        while (deadline := self.next_deadline_ns()) is not None and deadline <= now:
            _, token = heapq.heappop(self._queue)
            self._callbacks.pop(token)(now)

    def advance_to(self, now_ns: int) -> None:
        """Set a hand-driven clock forward, stopping at every deadline on the way."""
        while (deadline := self.next_deadline_ns()) is not None and deadline <= now_ns:
            self._manual_ns = max(self._manual_ns, deadline)
            self.fire_due()
        self._manual_ns = now_ns
