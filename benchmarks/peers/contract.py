"""What a peer's module offers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from benchmarks.peers.settings import Settings
    from benchmarks.peers.stacks import Stack


class Stored(NamedTuple):
    """An answer that is stored and handed off."""

    response_id: int
    #: When the commit had returned, by the clock that all processes of a machine share.
    committed_ns: int


#: Stores an answer with this text and hands it off.
Submit = Callable[[str], Awaitable[Stored]]


class Queue(Protocol):
    """Each peer is a module with these functions."""

    async def prepare(self, settings: Settings) -> None:
        """Install what the queue itself needs. May run again."""

    def submitting(self, settings: Settings, stack: Stack) -> AbstractAsyncContextManager[Submit]:
        """Open the producer's side."""

    def work(self, settings: Settings) -> None:
        """Run a worker until SIGTERM."""
