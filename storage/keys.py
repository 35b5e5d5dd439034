"""Keys that sort by the time they were made."""

from __future__ import annotations

import os
import time
from uuid import UUID


def time_ordered_uuid() -> UUID:
    """Make a UUID version 7 (RFC 9562, section 5.7): 48 bits of milliseconds, then 74 random bits.

    Neighbours in time are neighbours in an index, so that inserting into a table of millions touches the same
    few pages. Nothing depends on the clock being right.
    """
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76  # version
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant
    return UUID(int=value)
