"""Runs that are stopped in every way and resumed: the outcome is that of a run which nobody stopped.

A response in the middle is held by the test. The command does its first steps, then stands still in the one that meets
it, and the test acts there.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from demo.worker_process import worker_process
from storage import submit_responses
from storage.runs import BATCH
from storage.verification import verify_settlement
from tests.commands.operating import (
    bare_answers,
    ended,
    held,
    latest_run,
    score_all,
    scored_answers,
    scores_each,
    start_command,
    waiting,
)
from tests.factories import count, publish, submission
from tests.producers.proxy import Proxy
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.commands.conftest import Commands

pytestmark = [pytest.mark.commits, pytest.mark.processes]

NUMBER = 5 * BATCH
MIDDLE = 2 * BATCH + 7
KINDS = ("rescore", "backfill", "purge")
WORDS = {
    "rescore": ("rescore", "--all", "--yes"),
    "backfill": ("backfill", "--yes"),
    "purge": ("purge", "--older-than", "30", "--yes"),
}


async def prepared(engine: AsyncEngine, kind: str) -> list[int]:
    """As many answers as the run shall change."""
    if kind == "backfill":
        async with engine.begin() as conn:
            await publish(conn)
            return await bare_answers(conn, NUMBER)
    return await scored_answers(engine, NUMBER, anonymous=kind == "purge", days_old=40)


async def assert_done_once(engine: AsyncEngine, kind: str) -> None:
    """Each answer was changed once, whatever happened to the run."""
    run = await latest_run(engine)
    assert run["finished_at"] is not None
    assert run["changed"] == run["expected"] == NUMBER
    await score_all(engine)
    expected: dict[int, int] = {"rescore": {2: NUMBER}, "backfill": {1: NUMBER}, "purge": {}}[kind]
    assert await scores_each(engine) == expected
    async with engine.begin() as conn:
        assert (await verify_settlement(conn, full=True))["orphans"] == []
        assert await count(conn, "scoring_handoffs") == 0
        recorded = await conn.execute(
            text(
                "SELECT affected FROM scoring_actions WHERE action = :kind AND details ->> 'step' = 'finished'"
            ),
            {"kind": kind},
        )
        assert list(recorded.scalars()) == [NUMBER]


async def in_the_middle(commands: Commands, engine: AsyncEngine, kind: str) -> Process:
    """A command that has done two steps and waits within the third."""
    process = await start_command(commands.environment, *WORDS[kind])
    await waiting(engine)
    run = await latest_run(engine)
    assert run["changed"] == 2 * BATCH
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_signal_ends_a_run_between_two_steps(
    commands: Commands, engine: AsyncEngine, kind: str, number: signal.Signals
) -> None:
    """The step is finished, the exit status is 130, and what is said names what was done and how to go on."""
    ids = await prepared(engine, kind)
    async with held(engine, ids[MIDDLE]):
        process = await in_the_middle(commands, engine, kind)
        process.send_signal(number)
    status, out, err = await ended(process)
    run = await latest_run(engine)

    assert (status, out.count("Run ")) == (130, 0), err
    assert f"1,500 of about {NUMBER:,} answers" in err
    assert f"scoring {kind} --resume {run['run_id']}" in err
    assert "Traceback" not in err
    assert (run["changed"], run["finished_at"]) == (3 * BATCH, None)

    # What was asked for until now is scored before the run goes on.
    await score_all(engine)
    resumed = await commands.process(kind, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    await assert_done_once(engine, kind)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_killed_run_goes_on_where_its_last_step_ended(
    commands: Commands, engine: AsyncEngine, kind: str
) -> None:
    """Kill -9 in the middle of a step undoes that step and nothing else."""
    ids = await prepared(engine, kind)
    async with held(engine, ids[MIDDLE]):
        process = await in_the_middle(commands, engine, kind)
        process.kill()
        await process.wait()
    await score_all(engine)
    run = await latest_run(engine)

    resumed = await commands.process(kind, "--resume", str(run["run_id"]), "--by", "the next shift")

    assert resumed.returncode == 0, resumed.stderr
    await assert_done_once(engine, kind)
    again = await commands.json(kind, "--resume", str(run["run_id"]))
    assert again["run"]["changed"] == NUMBER
    history = await commands.json("history")
    assert [row["details"]["step"] for row in history if "step" in row["details"]] == [
        "finished",
        "resumed",
        "started",
    ]
    assert next(row["actor"] for row in history if row["details"].get("step") == "finished") == (
        "the next shift"
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_two_may_resume_the_same_run(commands: Commands, engine: AsyncEngine, kind: str) -> None:
    """They take turns, step by step; nothing is skipped and nothing done twice."""
    ids = await prepared(engine, kind)
    async with held(engine, ids[MIDDLE]):
        process = await in_the_middle(commands, engine, kind)
        process.kill()
        await process.wait()
    async with held(engine, ids[MIDDLE]) as conn:
        now = (await conn.execute(text("SELECT clock_timestamp()"))).scalar_one()
        both = [await start_command(commands.environment, kind, "--resume") for _ in range(2)]
        await waiting(engine, 2, since=now)
    results = [await ended(each) for each in both]

    assert [status for status, _, _ in results] == [0, 0], results
    await assert_done_once(engine, kind)


@pytest.fixture
async def proxy(database_url: str) -> AsyncIterator[Proxy]:
    """Between a command and PostgreSQL."""
    async with Proxy(make_url(database_url).port or 5432) as proxy:
        yield proxy


def through(proxy: Proxy, commands: Commands) -> Commands:
    url = make_url(commands.environment["SCORING_DATABASE_URL"]).set(host="127.0.0.1", port=proxy.port)
    changed = {"SCORING_DATABASE_URL": url.render_as_string(hide_password=False)}
    return replace(commands, environment={**commands.environment, **changed})


@pytest.mark.parametrize("trouble", ["commit", "connection"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_lost_connection_skips_nothing(
    commands: Commands, engine: AsyncEngine, proxy: Proxy, kind: str, trouble: str
) -> None:
    """Whether or not the commit got through, the command goes on by itself from where the cursor stands."""
    ids = await prepared(engine, kind)
    async with held(engine, ids[MIDDLE]):
        process = await in_the_middle(through(proxy, commands), engine, kind)
        if trouble == "commit":
            proxy.lose_next_reply(that_contains=b"COMMIT")
        else:
            proxy.cut()
    status, _, err = await ended(process)

    assert status == 0, err
    assert proxy.lost_replies == (1 if trouble == "commit" else 0)
    await assert_done_once(engine, kind)


async def test_a_run_says_how_to_go_on_when_postgresql_stays_away(
    commands: Commands, engine: AsyncEngine, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After half a minute it gives up, with exit status 1 and the command that resumes it."""
    monkeypatch.setattr("worker.commands.transactions._PAUSES_SECONDS", (0.0, 0.0))
    ids = await prepared(engine, "rescore")
    async with held(engine, ids[MIDDLE]):
        running = asyncio.create_task(through(proxy, commands).run(*WORDS["rescore"]))
        await waiting(engine)
        proxy.break_down()
        result = await running

    run: dict[str, Any] = await latest_run(engine)
    assert f"scoring rescore --resume {run['run_id']}" in str(result.exception)
    assert run["changed"] == 2 * BATCH


async def test_waiting_for_scores_ends_with_the_last_one(commands: Commands, engine: AsyncEngine) -> None:
    """--wait returns when nothing of the run waits any more, and says how many are dead."""
    await scored_answers(engine, 3)
    process = await start_command(commands.environment, *WORDS["rescore"], "--wait", "--json")

    async def finished() -> bool:
        return bool((await latest_run(engine)).get("finished_at"))

    await eventually(finished)
    assert process.returncode is None
    await score_all(engine)
    status, out, err = await ended(process)

    assert status == 0, err
    assert json.loads(out)["run"]["unscored"] == {"waiting": 0, "unpublished": 0, "dead": 0}


async def test_waiting_for_scores_survives_an_outage(
    commands: Commands, engine: AsyncEngine, proxy: Proxy
) -> None:
    """PostgreSQL is away for a moment while --wait looks; the command goes on looking."""
    await scored_answers(engine, 3)
    process = await start_command(through(proxy, commands).environment, *WORDS["rescore"], "--wait", "--json")

    async def finished() -> bool:
        return bool((await latest_run(engine)).get("finished_at"))

    await eventually(finished)
    proxy.break_down()
    await eventually(lambda: proxy.refused > 0)
    proxy.refuses = False
    await score_all(engine)
    status, out, err = await ended(process)

    assert status == 0, err
    assert json.loads(out)["run"]["unscored"]["waiting"] == 0


async def test_who_waits_for_scores_may_leave(commands: Commands, engine: AsyncEngine) -> None:
    """The run is done by then; Ctrl-C says what still waits."""
    await scored_answers(engine, 3)
    process = await start_command(commands.environment, *WORDS["rescore"], "--wait")

    async def finished() -> bool:
        return bool((await latest_run(engine)).get("finished_at"))

    await eventually(finished)
    process.send_signal(signal.SIGINT)
    status, _, err = await ended(process)

    assert status == 130
    assert "3 answers wait for their score" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_export_that_nobody_reads_can_be_stopped(
    commands: Commands, engine: AsyncEngine, number: signal.Signals
) -> None:
    """It waits for its reader, in the middle of a line; a signal ends it all the same, without an end line."""
    async with engine.begin() as conn:
        ids = await bare_answers(conn, NUMBER)
        await conn.execute(
            text("UPDATE assessment_responses SET user_id = 3 WHERE response_id = ANY (:ids)"), {"ids": ids}
        )
    process = await start_command(commands.environment, "export", "--user", "3")
    assert process.stdout is not None
    first = json.loads(await process.stdout.readline())
    process.send_signal(number)
    status, out, err = await ended(process)

    assert first["record"] == "export"
    assert status == 130
    assert '"end"' not in out
    assert "not complete" in err
    assert "Traceback" not in err


async def test_an_export_that_is_stopped_leaves_no_file(
    commands: Commands, engine: AsyncEngine, tmp_path: Path
) -> None:
    """The unfinished one is removed; none had the name that was asked for."""
    file = tmp_path / "student.jsonl"
    async with engine.connect() as conn:
        await conn.execute(text("LOCK TABLE assessment_drafts IN ACCESS EXCLUSIVE MODE"))
        process = await start_command(commands.environment, "export", "--user", "3", "--output", str(file))
        await waiting(engine)
        [unfinished] = os.listdir(tmp_path)  # noqa: PTH208 - pathlib's would be called blocking
        process.send_signal(signal.SIGINT)
        status, _, err = await ended(process)

    assert unfinished.endswith(".unfinished")
    assert status == 130, err
    assert "nothing was written" in err
    assert os.listdir(tmp_path) == []  # noqa: PTH208


async def test_an_export_whose_reader_leaves_says_nothing(commands: Commands, engine: AsyncEngine) -> None:
    """As with `| head`: exit status 1, no traceback."""
    async with engine.begin() as conn:
        ids = await bare_answers(conn, NUMBER)
        await conn.execute(
            text("UPDATE assessment_responses SET user_id = 3 WHERE response_id = ANY (:ids)"), {"ids": ids}
        )
    read, write = os.pipe()
    process = await start_command(commands.environment, "export", "--user", "3", stdout=write)
    os.close(write)
    os.close(read)
    status, _, err = await ended(process)

    assert (status, err) == (1, "")


async def test_workers_go_on_while_a_run_is_killed_and_resumed(
    commands: Commands, engine: AsyncEngine, tmp_path: Path
) -> None:
    """Live answers are scored meanwhile; in the end each answer has the scores that were asked for, and no more."""
    ids = await scored_answers(engine, NUMBER)
    environment = {**os.environ, **commands.environment, "SCORING_SCORER": "lexical"}

    async def live_is_scored() -> bool:
        async with engine.connect() as conn:
            found = await conn.execute(text("SELECT count(*) FROM scoring_handoffs WHERE lane = 'live'"))
            return not found.scalar_one()

    with worker_process(environment, tmp_path / "worker.log"):
        async with held(engine, ids[MIDDLE]):
            process = await in_the_middle(commands, engine, "rescore")
            async with engine.begin() as conn:
                await submit_responses(conn, [submission()] * 100)
            await eventually(live_is_scored)
            process.kill()
            await process.wait()
        resumed = await commands.process("rescore", "--resume", "--wait")

    assert resumed.returncode == 0, resumed.stderr
    assert "none waits" in resumed.stdout
    run = await latest_run(engine)
    assert (run["changed"], run["expected"]) == (NUMBER, NUMBER)
    assert await scores_each(engine) == {1: 100, 2: NUMBER}
