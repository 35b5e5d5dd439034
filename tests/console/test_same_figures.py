"""What the console shows can be had from commands with --json, figure by figure."""

from __future__ import annotations

import re
from html import unescape
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from storage.dead import dismiss_dead
from storage.settlements import postpone_handoffs, settle_handoffs
from storage.statistics import COUNT_LIMIT
from storage.workers import report_worker
from tests.commands.conftest import Commands
from tests.console.acting import REFUSED, TOO_LONG, bury_answers
from tests.factories import change_handoff, lease, release, settlement, submit
from worker.http import wording
from worker.provider_report import ProviderReport, RateLimitReport

if TYPE_CHECKING:
    import httpx
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

pytestmark = pytest.mark.commits

USAGE = {"requests": 2, "input_tokens": 700, "output_tokens": 90, "cost_usd": 0.25}


async def a_worker(conn: AsyncConnection, *, free_slots: int, note: str | None = None) -> None:
    report = ProviderReport(
        name="api.example/model-1",
        breaker="open" if note else "closed",
        shared=True,
        reason="529: overloaded" if note else None,
        open_seconds=12 if note else None,
        rate_limits=RateLimitReport(shared=True, requests_per_minute=600),
    )
    await report_worker(
        conn, worker_id=uuid4(), host="here", pid=7, version="1", slots=20, free_slots=free_slots, note=note,
        provider=report.model_dump(mode="json"),
    )  # fmt: skip


async def everything(conn: AsyncConnection, dead: list[int]) -> None:
    """One or more of each state, scores, and a worker that holds something."""
    ids = [(await submit(conn))["response_id"] for _ in range(8)]
    await change_handoff(conn, ids[0], lane="bulk")
    leases = await lease(conn, *ids[3:8])
    await postpone_handoffs(conn, [release(leases[0], reason="529", delay_seconds=60.0)])
    scored = [
        settlement(held, overall_score=score) for held, score in zip(leases[2:], (2.0, 3.0, 5.0), strict=True)
    ]
    for each in scored:
        each.score_data["usage"] = USAGE
    await settle_handoffs(conn, scored)
    await submit(conn, question_id="unheard-of")
    await dismiss_dead(conn, response_ids=dead[:1], dismissed_by="Ada")
    await a_worker(conn, free_slots=17)


def tiles(page: str) -> dict[str, tuple[str, str]]:
    """Each tile's figure and the line below it, by its name."""
    found = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd><dd class=\"small\">(.*?)</dd>", page)
    return {name: (unescape(figure), unescape(below)) for name, figure, below in found}


async def test_every_figure_is_in_a_commands_json(
    browserless: httpx.AsyncClient, engine: AsyncEngine, database_url: str
) -> None:
    """Counts, rates, times, tokens, money, spread, workers, provider, and the dead with reason and history."""
    dead = await bury_answers(engine, REFUSED, REFUSED, TOO_LONG)
    async with engine.begin() as conn:
        await everything(conn, dead)
    commands = Commands({"SCORING_DATABASE_URL": database_url})

    page = (await browserless.get("/console")).text
    status, stats = await commands.json("status"), await commands.json("stats")
    listed = await commands.json("dead", "list")

    shown, hour = tiles(page), stats["hour"]
    waiting = status["waiting_live"] + status["waiting_bulk"]
    assert (
        shown["Waiting"]
        == (str(waiting), f"{status['waiting_live']} live, {status['waiting_bulk']} bulk")
        == ("3", "2 live, 1 bulk")
    )
    assert (
        shown["Leased"]
        == (str(status["leased"]), f"of {status['workers'][0]['slots']} slots")
        == ("1", "of 20 slots")
    )
    assert shown["Postponed"][0] == str(status["postponed"]) == "1"
    assert shown["Dead"] == (str(status["dead"]), f"{status['dismissed']} dismissed") == ("2", "1 dismissed")
    assert shown["Unpublished"][0] == str(status["unpublished"]) == "1"
    assert shown["Scored"][0] == str(status["scored_last_minute"]) == "3"
    assert status["oldest_seconds"] > 0
    assert shown["Oldest"][0] != wording.NOTHING
    assert status["counted_up_to"] == COUNT_LIMIT

    figures: list[str] = re.findall(r"</span>[a-z0-9]+ <strong>(.*?)</strong>", page)
    ranks = [
        wording.duration(hour[name][rank])
        for name in ("pickup_seconds", "scoring_seconds")
        for rank in ("p50", "p95", "p99")
    ]
    assert figures[:2] == [f"{hour['answers']}/h", f"{hour['scores']}/h"] == ["12/h", "3/h"]
    assert figures[2:] == ranks
    assert shown["Money"][0] == wording.money(hour["cost_usd"]) == "$0.75"
    assert shown["Input tokens"][0] == wording.count(hour["input_tokens"]) == "2,100"
    assert shown["Output tokens"][0] == wording.count(hour["output_tokens"]) == "270"
    assert shown["Calls"][0] == str(hour["requests"]) == "6"
    [question] = stats["questions"]
    assert f"{question['looked_at']} scores, mean {wording.decimal(question['mean'])}" in page
    assert (question["looked_at"], sum(question["bins"])) == (3, 3)

    [worker] = status["workers"]
    assert f"</meter> {worker['slots'] - worker['free_slots']}</td>" in page
    assert worker["provider"]["breaker"] == "closed"
    assert f"{worker['provider']['rate_limits']['requests_per_minute']} requests" in page
    assert [(kind["reason"], kind["answers"]) for kind in stats["dead_kinds"]] == [
        (REFUSED, 1),
        (TOO_LONG, 1),
    ]
    for row in listed:
        assert f'<th scope="row">{row["response_id"]}</th>' in page
        assert row["last_error"] in unescape(page)
        assert f"attempts {row['attempts']}, postponed {row['postponements']}" in page


async def test_a_worker_that_takes_nothing_is_not_said_to_be_full(
    browserless: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    """With its breaker open it would take one, and holds none: how many it holds is not known."""
    async with engine.begin() as conn:
        await a_worker(conn, free_slots=1, note="breaker open")

    page = (await browserless.get("/console")).text

    workers = page[page.index('id="workers"') :]
    assert f'<td class="used">{wording.NOTHING}</td>' in workers
    assert "<meter" not in page
