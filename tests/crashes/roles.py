"""What a forked process does: a worker or a web process, each as in production."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from producers import ProducerSettings, open_producer
from storage import submit_response
from tests.crashes import script
from worker import decisions, sweep
from worker.main import run_process
from worker.settings import ScoringSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Pauses that no setting shortens: with the real ones a run would take ten seconds and send hundreds of idle commands.
PAUSE_SECONDS = 0.1
OVERDUE_SECONDS = 0.05


def work(*, settings: dict[str, Any], folder: str) -> None:
    """Be ``scoring worker``, with the scripted scorer.

    Args:
        settings: Those of the worker.
        folder: Where the scorer keeps its notes.
    """
    decisions.FAILED_BASE_SECONDS = decisions.POSTPONED_BASE_SECONDS = PAUSE_SECONDS
    sweep.OVERDUE_SECONDS = OVERDUE_SECONDS
    os.environ[script.FOLDER_VARIABLE] = folder
    run_process(ScoringSettings(**settings, scorer="tests.crashes.script:scorer"))


def produce(*, settings: dict[str, Any], acknowledged: str, requests: dict[str, Any]) -> None:
    """Be a web process: submit, store in a transaction of its own, claim.

    Args:
        settings: Those of the producer.
        acknowledged: The file to which each key is appended as soon as its answer was acknowledged.
        requests: ``waves`` (lists of submissions that come together), ``own`` (submissions that the web app stores
            itself, and announces) and ``claim``.
    """
    asyncio.run(_produce(ProducerSettings(**settings), Path(acknowledged), requests))


async def _produce(settings: ProducerSettings, acknowledged: Path, requests: Mapping[str, Any]) -> None:
    file = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def acknowledge(key: str, number: int) -> None:
        os.write(file, f"{key} {number}\n".encode())

    engine = settings.engine()
    async with open_producer(settings, engine=engine) as producer:

        async def submit(submission: dict[str, Any]) -> None:
            row = await producer.submit(**submission)
            acknowledge(submission["submission_key"], row["response_id"])

        async def store(submission: dict[str, Any]) -> None:
            async with engine.begin() as conn:
                row = await submit_response(conn, **submission)
            acknowledge(submission["submission_key"], row["response_id"])
            producer.announce([row["response_id"]])

        async def claim() -> None:
            acknowledge("claim", await producer.claim(**requests["claim"]))

        for wave in requests["waves"]:
            await asyncio.gather(*map(submit, wave))
        await asyncio.gather(*map(store, requests["own"]), claim())
    await engine.dispose()


ROLES: dict[str, Callable[..., None]] = {"worker": work, "producer": produce}
