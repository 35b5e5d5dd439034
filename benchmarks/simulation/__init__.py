"""The night of the deadline, simulated: ``python -m benchmarks.simulation``.

:func:`measure` is the check of a small case against the real system, a part of ``make bench``.
"""

from __future__ import annotations

from benchmarks.simulation.check import STEPS, measure

__all__ = ["STEPS", "measure"]
