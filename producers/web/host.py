"""What only the host app knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Host:
    """What the host app gives, each a FastAPI dependency. See :func:`producers.web.create_router`."""

    identity: Callable[..., Any]
    may_claim: Callable[..., Any]
    producer: Callable[..., Any]
    engine: Callable[..., Any]
    max_answer_chars: int
