"""What the worker and its commands raise for a person to read."""

from __future__ import annotations


class WorkerError(Exception):
    """A command or the worker cannot go on; the message says why and what to do.

    Its class says how the process ends: 1 where something broke or is away, 2 where input is wrong.
    """

    exit_status = 1


class WorkerBrokenError(WorkerError):
    """A loop of the worker ended by itself; the log says which and why. Everything was handed back."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)
