"""How often somebody may be wrong about the token."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# A person who mistypes is not held up; a program that tries is, and all such programs together.
EACH, ALL = 5, 50
WINDOW_SECONDS = 60.0
# Addresses that are remembered; who is forgotten still counts among all.
ADDRESSES = 1_000


class Guesses:
    """Counts wrong tokens by address and in all, over the last minute.

    Who has been wrong too often is not listened to, right or wrong, until some of it is a minute ago. Whoever is signed
    in already is not touched by that.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._all: deque[float] = deque(maxlen=ALL)
        self._by_address: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_seconds(self, address: str) -> float:
        """How long this address must wait before it may try again; 0 where it may now."""
        return max(self._wait(self._all), self._wait(self._by_address.get(address)))

    def wrong(self, address: str) -> None:
        """Somebody there gave a wrong token."""
        now = self._clock()
        self._all.append(now)
        self._by_address.setdefault(address, deque(maxlen=EACH)).append(now)
        self._by_address.move_to_end(address)
        while len(self._by_address) > ADDRESSES:
            self._by_address.popitem(last=False)

    def _wait(self, times: deque[float] | None) -> float:
        if not times or len(times) != times.maxlen:
            return 0.0
        return max(0.0, times[0] + WINDOW_SECONDS - self._clock())
