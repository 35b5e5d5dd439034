"""What things cost: the seconds that the simulation is fed with, as they were measured."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

_STATEMENTS = ("submit", "lease", "renew", "settle", "sweep")


@dataclass(frozen=True, slots=True)
class ServiceTimes:
    """Seconds. A statement of so many rows takes ``base + rows * per_row``, see :mod:`benchmarks.service_times`.

    What stands here was measured on 2 cores (x86-64, PostgreSQL 18.4, Valkey 9.1, Python 3.11), one statement at a
    time, and serves where ``benchmarks/results.json`` has no figures.
    """

    submit_statement_seconds_base: float = 0.82e-3
    submit_seconds_per_row: float = 35.0e-6
    lease_statement_seconds_base: float = 0.47e-3
    lease_seconds_per_row: float = 10.9e-6
    renew_statement_seconds_base: float = 0.40e-3
    renew_seconds_per_row: float = 8.3e-6
    settle_statement_seconds_base: float = 0.62e-3
    settle_seconds_per_row: float = 18.0e-6
    sweep_statement_seconds: float = 0.42e-3
    permit_seconds: float = 0.21e-3
    # From the start of a submit's statement to the start of the lease's, one answer, worker idle.
    pickup_seconds: float = 2.10e-3
    # A worker's processor time for one answer: with a scorer that costs nothing, and through the model client.
    worker_processor_seconds_per_answer: float = 0.06e-3
    model_processor_seconds_per_answer: float = 5.12e-3

    @classmethod
    def from_results(cls, results: Mapping[str, Any]) -> Self:
        """Take what ``make bench`` wrote under ``service``; what is missing there keeps its value from here."""
        measured = results.get("service", {})
        names = [field.name for field in fields(cls)]
        return cls(**{name: float(measured[name]) for name in names if name in measured})

    def slower_database(self, factor: float) -> Self:
        """The same with a PostgreSQL whose statements take so many times as long."""
        return replace(
            self,
            **{
                field.name: getattr(self, field.name) * factor
                for field in fields(self)
                if field.name.startswith(_STATEMENTS)
            },
        )

    @property
    def bell_seconds(self) -> float:
        """From a submit's commit to the start of the lease's statement."""
        return max(0.0, self.pickup_seconds - self.submit(1))

    def submit(self, rows: int) -> float:
        """Seconds of one statement that stores so many answers with their handoffs."""
        return self.submit_statement_seconds_base + rows * self.submit_seconds_per_row

    def lease(self, rows: int) -> float:
        """Seconds of one statement that leases so many."""
        return self.lease_statement_seconds_base + rows * self.lease_seconds_per_row

    def renew(self, rows: int) -> float:
        """Seconds of one statement that renews so many leases."""
        return self.renew_statement_seconds_base + rows * self.renew_seconds_per_row

    def settle(self, rows: int) -> float:
        """Seconds of one statement that writes so many scores."""
        return self.settle_statement_seconds_base + rows * self.settle_seconds_per_row
