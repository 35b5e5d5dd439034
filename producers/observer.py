"""What a producer tells whoever watches it: metrics are an observer, a submit knows nothing of them."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

from storage.errors import InvalidInputError, StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    Result = Literal["stored", "invalid", "unavailable", "cancelled", "failed"]

logger = logging.getLogger(__name__)


class SubmitObserver(Protocol):
    """Is told of every submit. What it raises is logged, and costs no answer."""

    def submitted(self, result: Result, seconds: float) -> None:
        """A submit has ended.

        Args:
            result: ``stored``; ``invalid`` (a rule is broken); ``unavailable`` (PostgreSQL is away); ``cancelled`` (whoever
                asked is gone); ``failed`` (anything else).
            seconds: From the call to its return, for an answer that was stored: to its commit.
        """
        ...


@contextmanager
def observed(observer: SubmitObserver | None) -> Iterator[None]:
    """Tell an observer how the block ended, and after how long."""
    if observer is None:
        yield
        return
    began = time.perf_counter()
    result: Result = "failed"
    try:
        yield
        result = "stored"
    except InvalidInputError:
        result = "invalid"
        raise
    except StorageUnavailableError:
        result = "unavailable"
        raise
    except asyncio.CancelledError:
        result = "cancelled"
        raise
    finally:
        try:
            observer.submitted(result, time.perf_counter() - began)
        except Exception as exc:  # noqa: BLE001 - an answer must not be lost for want of a number
            logger.error("An observer failed.", extra={"error": type(exc).__name__})  # noqa: TRY400
