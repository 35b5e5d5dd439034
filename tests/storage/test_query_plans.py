"""A test here fails when a hot statement stops using its index, with the values at hand or with any values.

The statements are not copied: each function is called, and what it sent is explained.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import event, text

from storage import (
    claim_assessment_responses,
    create_engine,
    discard_draft,
    get_draft,
    get_response,
    get_responses,
    get_responses_for_question,
    get_scores,
    save_draft,
)
from storage.activity import last_hour
from storage.backfilling import backfill_step, survey_backfill
from storage.claims import requested_claims
from storage.dead import (
    dismiss_dead,
    list_dead,
    newest_dead,
    rescore_responses,
    retry_dead,
    retry_next_dead,
)
from storage.dead_kinds import dead_kinds, dismiss_kind, list_dead_of_kind, retry_kind
from storage.erasure import erase_responses
from storage.feed import read_marks, read_missed, read_news, read_requested_claims, read_states
from storage.holdings import Student, count_holdings, read_holdings
from storage.leases import bury_lost, lease_handoffs, pull_handoffs, pull_suspects, renew_leases
from storage.purging import purge_claims, purge_drafts, purge_step, survey_purge
from storage.rescoring import Choice, rescore_step, survey_rescore
from storage.runs import horizon, latest_runs, unscored_of
from storage.settlements import postpone_handoffs, settle_handoffs
from storage.sweeps import overdue, revive_missed
from storage.validation import Owner
from tests.databases import raw_connection, temporary_database, upgrade
from tests.factories import LEASE_SECONDS, publish, release, settlement, submit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from tests.conftest import GivenServers

    Work = Callable[[AsyncConnection], Awaitable[Any]]

# A backlog of thousands in front of a history of tens of thousands: small enough to make within a second, large
# enough for a full scan to be the wrong plan.
FILL = """
    INSERT INTO users (user_id) SELECT generate_series(1, 4000);
    INSERT INTO assessment_questions
        (question_digest, module_slug, question_id, question_text, rubric, scale_min, scale_max)
        SELECT 'digest ' || n, 'm' || n % 20, 'q' || n, 't', 'r', 1, 5 FROM generate_series(0, 4999) AS n;
    INSERT INTO assessment_responses
        (user_id, anonymous_token, module_slug, question_id, answer_text, question_digest)
        SELECT CASE WHEN n % 2 = 0 THEN 1 + n / 2 % 4000 END, CASE WHEN n % 2 = 1 THEN 'token ' || n / 2 % 4000 END,
            'm' || n % 100 % 20, 'q' || n % 100, 'An answer of some length.', 'digest ' || n % 100
        FROM generate_series(0, 39999) AS n ORDER BY n;
    INSERT INTO assessment_scores
        (response_id, handoff_id, question_digest, model_id, prompt_version, score_data, created_at)
        SELECT response_id, response_id, question_digest, 'm', 'p', '{}', now() - make_interval(secs => 40000 - response_id)
        FROM assessment_responses WHERE response_id <= 30000 ORDER BY response_id;
    SELECT setval(pg_get_serial_sequence('scoring_handoffs', 'handoff_id'), 100000);
    INSERT INTO scoring_handoffs
        (response_id, question_digest, lane, state, due_at, lease_token, leased_at, lease_losses, last_error)
        SELECT response_id, question_digest, lane, 'open', now() - make_interval(secs => 40000 - response_id), NULL, NULL,
            0, CASE WHEN response_id % 100 = 0 THEN '503' END
        FROM assessment_responses, LATERAL (
            SELECT CASE WHEN response_id % 10 = 0 THEN 'bulk' ELSE 'live' END AS lane
        ) AS lanes
        WHERE response_id BETWEEN 30001 AND 39000 ORDER BY response_id;
    INSERT INTO scoring_handoffs (response_id, question_digest, due_at, lease_token, leased_at)
        SELECT response_id, question_digest, now() + interval '1 hour', gen_random_uuid(), now()
        FROM assessment_responses WHERE response_id BETWEEN 39001 AND 39300 ORDER BY response_id;
    INSERT INTO scoring_handoffs (response_id, question_digest, due_at, last_error)
        SELECT response_id, question_digest, now() + interval '1 hour', '503'
        FROM assessment_responses WHERE response_id BETWEEN 39301 AND 39500 ORDER BY response_id;
    INSERT INTO scoring_handoffs (response_id, question_digest, state, due_at, last_error)
        SELECT response_id, question_digest, CASE WHEN response_id % 2 = 0 THEN 'dead' ELSE 'dismissed' END, 'infinity', 'refused'
        FROM assessment_responses WHERE response_id BETWEEN 39501 AND 39700 ORDER BY response_id;
    INSERT INTO scoring_handoffs (response_id, due_at)
        SELECT response_id, 'infinity' FROM assessment_responses WHERE response_id > 39980 ORDER BY response_id;
    INSERT INTO assessment_claims (anonymous_token, user_id, applied_at, moved, skipped)
        SELECT 'claimed ' || n, 1 + n % 4000, now(), 1, 0 FROM generate_series(1, 20000) AS n;
    INSERT INTO assessment_claims (anonymous_token, user_id)
        SELECT 'token ' || n, 1 FROM generate_series(1, 5) AS n;
    INSERT INTO assessment_drafts (user_id, anonymous_token, module_slug, question_id, answer_text, submission_key)
        SELECT CASE WHEN n % 2 = 0 THEN 1 + n / 2 % 4000 END, CASE WHEN n % 2 = 1 THEN 'token ' || n / 2 % 4000 END,
            'm1', 'q' || n / 8000, 'A draft of some length.', gen_random_uuid()
        FROM generate_series(0, 19999) AS n;
    ANALYZE;
"""
NOT_OURS = "/* a test's own question */"
COST_OF_PLANNING = (
    50.0  # more than choose_custom_plan() in PostgreSQL's plancache.c adds for our longest join
)
# Reading one of these from end to end is what no hot statement may do.
LARGE = frozenset(
    {
        "assessment_questions",
        "assessment_responses",
        "assessment_scores",
        "assessment_claims",
        "assessment_drafts",
        "scoring_handoffs",
    }
)


@dataclass(frozen=True)
class Sent:
    """A statement as it reached the driver."""

    statement: str
    parameters: Sequence[Any]


def nodes(plan: Any) -> Iterator[dict[str, Any]]:
    """Every node of a plan, as EXPLAIN (FORMAT JSON) writes it."""
    if isinstance(plan, str):
        plan = json.loads(plan)
    if isinstance(plan, list):
        for part in plan:
            yield from nodes(part)
    elif "Plan" in plan:
        yield from nodes(plan["Plan"])
    else:
        yield plan
        yield from nodes(plan.get("Plans", []))


@pytest.fixture(scope="module")
async def engine(servers: GivenServers) -> AsyncIterator[AsyncEngine]:
    """A database of its own, filled once."""
    async with temporary_database(servers.database_url) as url:
        await upgrade(url)
        async with raw_connection(url) as connection:
            await connection.execute(FILL)
        engine = create_engine(url)
        yield engine
        await engine.dispose()


async def sent_by(conn: AsyncConnection, work: Work) -> list[Sent]:
    """Do it, and return what was sent."""
    sent: list[Sent] = []

    def remember(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.append(Sent(statement, tuple(parameters)))

    savepoint = await conn.begin_nested()
    event.listen(conn.sync_connection, "before_cursor_execute", remember)
    await work(conn)
    event.remove(conn.sync_connection, "before_cursor_execute", remember)
    await savepoint.rollback()
    return [one for one in sent if not one.statement.startswith(NOT_OURS)]


async def plan_for_these_values(conn: AsyncConnection, sent: Sent) -> list[dict[str, Any]]:
    explained = await conn.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {sent.statement}", tuple(sent.parameters))
    return list(nodes(explained.scalar_one()))


async def plan_for_any_values(conn: AsyncConnection, sent: Sent) -> list[dict[str, Any]]:
    """The generic plan, to which PostgreSQL may change once a statement was executed five times."""
    driver: Any = (await conn.get_raw_connection()).driver_connection
    nulls = ", ".join(["NULL"] * len(sent.parameters))
    await driver.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    await driver.execute(f"PREPARE explained AS {sent.statement}")
    try:
        called = f"explained({nulls})" if nulls else "explained"
        return list(nodes(await driver.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE {called}")))
    finally:
        await driver.execute("DEALLOCATE explained")
        await driver.execute("SET LOCAL plan_cache_mode = auto")


async def plans(conn: AsyncConnection, sent: Sent) -> list[list[dict[str, Any]]]:
    """The plans under which a statement may run: the generic one only where it looks cheaper than planning anew."""
    special, generic = await plan_for_these_values(conn, sent), await plan_for_any_values(conn, sent)
    cheaper = generic[0]["Total Cost"] < special[0]["Total Cost"] + COST_OF_PLANNING
    return [special, generic] if cheaper else [special]


def reads_of(plan: list[dict[str, Any]]) -> tuple[set[str], set[str]]:
    indexes = {node["Index Name"] for node in plan if "Index Name" in node}
    scanned = {node["Relation Name"] for node in plan if node["Node Type"] == "Seq Scan"}
    return indexes, scanned


async def held(conn: AsyncConnection) -> list[dict[str, Any]]:
    found = await conn.execute(
        text(
            f"{NOT_OURS} SELECT handoff_id, created_at, lease_token FROM scoring_handoffs WHERE lease_token IS NOT NULL LIMIT 20"
        )
    )
    return [dict(row) for row in found.mappings()]


async def settle(conn: AsyncConnection) -> None:
    await settle_handoffs(conn, [settlement(lease) for lease in await held(conn)])


async def renew(conn: AsyncConnection) -> None:
    leases = [(lease["handoff_id"], lease["lease_token"]) for lease in await held(conn)]
    await renew_leases(conn, leases, lease_seconds=LEASE_SECONDS)


async def postpone(conn: AsyncConnection) -> None:
    await postpone_handoffs(conn, [release(lease, reason="r") for lease in await held(conn)])


async def repeat(conn: AsyncConnection) -> None:
    key = uuid4()
    for _ in range(2):
        await submit(conn, anonymous_token="token 1", submission_key=key)


async def read_all(conn: AsyncConnection) -> None:
    student = Student(user_id=7, tokens=("token 7", "token 9"))
    await count_holdings(conn, student)
    async for _ in read_holdings(conn, student):
        pass


# A step in the middle of a run over everything.
RUN: dict[str, Any] = {
    "last_response_id": 20_000,
    "until_response_id": 40_000,
    "filters": {"after_handoff_id": 109_000},
}
RESCORE = RUN | {"filters": RUN["filters"] | {"until_score_id": 30_000}}
PURGE = RUN | {"filters": {"older_than_days": 0, "cutoff": "2100-01-01T00:00:00+00:00"}}
CUTOFF = datetime(2100, 1, 1, tzinfo=UTC)
LEASE: dict[str, Any] = {"lease_seconds": LEASE_SECONDS, "lease_token": uuid4()}
RESPONSES_OF_USER = "ix_assessment_responses_user"
RESPONSES_TO_QUESTION = "ix_assessment_responses_user_question"
RESPONSES_OF_TOKEN = "ix_assessment_responses_token"
RESPONSE = "assessment_responses_pkey"
HANDOFF = "scoring_handoffs_pkey"
HANDOFF_OF_RESPONSE = "uq_scoring_handoffs_response"
DUE = "ix_scoring_handoffs_due"
UNPUBLISHED = "ix_scoring_handoffs_unpublished"
ENDED = "ix_scoring_handoffs_ended"
CURRENT_SCORE = "ix_assessment_scores_response"
CURRENT_QUESTION = "ix_assessment_questions_current"
SUSPECT = "ix_scoring_handoffs_suspect"
CLAIM = "assessment_claims_pkey"
DRAFTS_OF_USER = "ix_assessment_drafts_user"
DRAFTS_OF_TOKEN = "ix_assessment_drafts_token"
KEY = "uq_assessment_responses_submission_key"
DRAFT: dict[str, Any] = {"module_slug": "m1", "question_id": "q1"}
CLAIMS_OF_TOKEN = "ix_assessment_claims_token"
CLAIMS_REQUESTED = "ix_assessment_claims_requested"
SCORE = "assessment_scores_pkey"
NEWS: dict[str, Any] = {
    "marks": {"response": 39_900, "score": 29_900, "handoff": 109_000, "claim": 19_990},
    "gaps": {"response": [5, 6], "score": [5, 6], "claim": [5, 6]},
    "watched": dict.fromkeys(range(39_001, 39_101), "scoring"),
}
MANY_OWNERS = [(Owner(number, None), None if number % 2 else 1) for number in range(1, 101)]

SCORED_AT = "ix_assessment_scores_created_at"
KIND: dict[str, Any] = {"kind": "0123456789abcdef", "until_handoff_id": 10**9}

HOT: dict[str, tuple[Any, set[str]]] = {
    "page of a user": (
        partial(get_responses, user_id=7),
        {RESPONSES_OF_USER, HANDOFF_OF_RESPONSE, CURRENT_SCORE},
    ),
    "next page of a user": (
        partial(get_responses, user_id=7, before_response_id=20_000),
        {RESPONSES_OF_USER, HANDOFF_OF_RESPONSE, CURRENT_SCORE},
    ),
    "page of a module": (
        partial(get_responses, user_id=7, module_slug="m12"),
        {RESPONSES_OF_USER, HANDOFF_OF_RESPONSE, CURRENT_SCORE},
    ),
    "page of a token": (
        partial(get_responses, anonymous_token="token 7"),
        {RESPONSES_OF_TOKEN, HANDOFF_OF_RESPONSE, CURRENT_SCORE},
    ),
    "question of a user": (
        partial(get_responses_for_question, user_id=7, question_id="q12"),
        {RESPONSES_TO_QUESTION, HANDOFF_OF_RESPONSE, CURRENT_SCORE},
    ),
    "question of a user in a module": (
        partial(get_responses_for_question, user_id=7, question_id="q12", module_slug="m12"),
        {RESPONSES_TO_QUESTION, HANDOFF_OF_RESPONSE, CURRENT_SCORE},
    ),
    "question of a token": (
        partial(get_responses_for_question, anonymous_token="token 7", question_id="q12"),
        {RESPONSES_OF_TOKEN, HANDOFF_OF_RESPONSE, CURRENT_SCORE},
    ),
    "response with its scores": (
        partial(get_response, user_id=7, response_id=13),
        {RESPONSES_OF_USER, HANDOFF_OF_RESPONSE, CURRENT_SCORE},
    ),
    "save a draft": (
        partial(save_draft, user_id=7, answer_text="a", submission_key=uuid4(), **DRAFT),
        {KEY},
    ),
    "draft of a user": (partial(get_draft, user_id=7, **DRAFT), {DRAFTS_OF_USER, KEY}),
    "draft of a token": (partial(get_draft, anonymous_token="token 7", **DRAFT), {DRAFTS_OF_TOKEN, KEY}),
    "discard a draft": (partial(discard_draft, user_id=7, **DRAFT), {DRAFTS_OF_USER}),
    "scores of a response": (partial(get_scores, user_id=7, response_id=13), {CURRENT_SCORE}),
    "submit": (submit, {CURRENT_QUESTION}),
    "submit again": (
        repeat,
        {CURRENT_QUESTION, KEY, "ix_assessment_claims_token"},
    ),
    "publish": (publish, {CURRENT_QUESTION, UNPUBLISHED, HANDOFF}),
    "lease by ids": (
        partial(lease_handoffs, response_ids=list(range(30_001, 30_041)), limit=40, **LEASE),
        {HANDOFF_OF_RESPONSE, HANDOFF, RESPONSE},
    ),
    "pull live": (partial(pull_handoffs, lane="live", limit=50, **LEASE), {DUE, HANDOFF, RESPONSE}),
    "pull bulk": (partial(pull_handoffs, lane="bulk", limit=50, **LEASE), {DUE, HANDOFF, RESPONSE}),
    "pull suspects": (partial(pull_suspects, slots=100, limit=25, **LEASE), {SUSPECT, HANDOFF, RESPONSE}),
    "bury lost": (partial(bury_lost, lease_seconds=LEASE_SECONDS), {SUSPECT, HANDOFF}),
    "renew": (renew, {HANDOFF}),
    "settle": (settle, {HANDOFF}),
    "postpone": (postpone, {HANDOFF}),
    "sweep": (partial(overdue, lease_seconds=LEASE_SECONDS, overdue_seconds=5), {DUE, SUSPECT}),
    "revive": (revive_missed, {UNPUBLISHED, RESPONSE, CURRENT_QUESTION, HANDOFF}),
    "claims that wait": (requested_claims, {CLAIMS_REQUESTED}),
    "claim": (
        partial(claim_assessment_responses, anonymous_token="token 8", user_id=9),
        {
            CLAIMS_REQUESTED,
            RESPONSES_OF_TOKEN,
            RESPONSES_TO_QUESTION,
            RESPONSE,
            DRAFTS_OF_TOKEN,
            DRAFTS_OF_USER,
        },
    ),
    "feed: where to begin": (read_marks, {RESPONSE, SCORE, HANDOFF, CLAIM}),
    "feed: news": (
        partial(read_news, **NEWS),
        {RESPONSE, SCORE, HANDOFF, CLAIM, HANDOFF_OF_RESPONSE},
    ),
    "feed: states": (
        partial(read_states, response_ids=list(range(29_900, 30_100))),
        {RESPONSE, HANDOFF_OF_RESPONSE, CURRENT_SCORE},
    ),
    "feed: what a hundred missed": (
        partial(read_missed, wanted=MANY_OWNERS, newest=50),
        {RESPONSES_OF_USER, RESPONSES_OF_TOKEN, HANDOFF_OF_RESPONSE, CURRENT_SCORE},
    ),
    "feed: what a token missed": (
        partial(read_missed, wanted=[(Owner(None, "token 7"), 1)], newest=50),
        {RESPONSES_OF_USER, RESPONSES_OF_TOKEN, HANDOFF_OF_RESPONSE, CURRENT_SCORE},
    ),
    "feed: claims to come": (partial(read_requested_claims, user_ids=[1, 2]), set()),
    "list of the dead": (list_dead, {ENDED, RESPONSE}),
    "retry one": (partial(retry_dead, response_ids=[39_502]), {HANDOFF}),
    "retry all": (retry_dead, {ENDED, HANDOFF}),
    "retry the next of all": (
        partial(retry_next_dead, after_handoff_id=1, until_handoff_id=10**9, reason="refused"),
        {ENDED, HANDOFF},
    ),
    "the newest of the dead": (newest_dead, {ENDED}),
    "last hour": (last_hour, {RESPONSE, SCORE, SCORED_AT, CURRENT_SCORE}),
    "kinds of the dead": (dead_kinds, {ENDED}),
    "dead of a kind": (partial(list_dead_of_kind, kind=KIND["kind"]), {ENDED, RESPONSE}),
    "retry a kind": (partial(retry_kind, **KIND), {ENDED, HANDOFF}),
    "dismiss a kind": (partial(dismiss_kind, **KIND, dismissed_by="ops"), {ENDED, HANDOFF}),
    "dismiss": (
        partial(dismiss_dead, response_ids=[39_502], dismissed_by="ops"),
        {HANDOFF_OF_RESPONSE, HANDOFF},
    ),
    "rescore": (
        partial(rescore_responses, response_ids=[5, 6, 39_502]),
        {RESPONSE, CURRENT_QUESTION, HANDOFF_OF_RESPONSE},
    ),
    "horizon of a run": (horizon, {RESPONSE, HANDOFF, "assessment_scores_pkey"}),
    "step of a rescore": (partial(rescore_step, run=RESCORE), {RESPONSE, CURRENT_SCORE, HANDOFF_OF_RESPONSE}),
    "survey of a rescore": (
        partial(
            survey_rescore, choice=Choice(outdated=True), after=20_000, until=40_000, until_score_id=30_000
        ),
        {RESPONSE, CURRENT_SCORE, CURRENT_QUESTION},
    ),
    "step of a backfill": (partial(backfill_step, run=RUN), {RESPONSE, CURRENT_SCORE, HANDOFF_OF_RESPONSE}),
    "survey of a backfill": (
        partial(survey_backfill, after=20_000, until=40_000),
        {RESPONSE, CURRENT_SCORE, HANDOFF_OF_RESPONSE},
    ),
    "step of a purge": (
        partial(purge_step, run=PURGE),
        {RESPONSE, CURRENT_SCORE, HANDOFF_OF_RESPONSE, CLAIMS_REQUESTED},
    ),
    "survey of a purge": (
        partial(survey_purge, cutoff=CUTOFF, after=20_000, until=40_000),
        {RESPONSE, CURRENT_SCORE, HANDOFF_OF_RESPONSE},
    ),
    "purge of claims": (
        partial(purge_claims, cutoff=CUTOFF, after=10_000),
        {CLAIM, RESPONSES_OF_TOKEN},
    ),
    "purge of drafts": (partial(purge_drafts, cutoff=CUTOFF, after=0), set()),
    "what a run waits for": (partial(unscored_of, run=RUN), {HANDOFF}),
    "list of runs": (partial(latest_runs, kind="rescore"), set()),
    "export": (
        read_all,
        {RESPONSES_OF_TOKEN, CURRENT_SCORE, HANDOFF_OF_RESPONSE, CLAIMS_OF_TOKEN},
    ),
    "erase": (partial(erase_responses, user_id=7), {CURRENT_SCORE, HANDOFF_OF_RESPONSE, RESPONSE}),
}


@pytest.mark.parametrize("name", HOT)
async def test_a_hot_statement_uses_its_indexes(conn: AsyncConnection, name: str) -> None:
    """None reads a large table from end to end, whatever values it is given."""
    work, expected = HOT[name]
    used: set[str] = set()

    for sent in await sent_by(conn, work):
        for plan in await plans(conn, sent):
            indexes, scanned = reads_of(plan)
            used |= indexes
            assert not scanned & LARGE, f"{sent.statement}\n{json.dumps(plan[0], indent=1)}"

    assert expected <= used


async def test_a_backlog_of_suspects_costs_a_group_little(conn: AsyncConnection) -> None:
    """A group reads its own rows and the oldest, not the thousands that wait behind them, statistics or not."""
    changed = await conn.execute(
        text(
            f"{NOT_OURS} UPDATE scoring_handoffs SET lease_losses = 3"
            " WHERE state = 'open' AND lease_token IS NULL AND question_digest IS NOT NULL AND due_at <= now()"
        )
    )
    assert changed.rowcount == 9000

    for known in (False, True):
        if known:
            await conn.execute(text(f"{NOT_OURS} ANALYZE scoring_handoffs"))
        [sent] = await sent_by(conn, partial(pull_suspects, slots=100, limit=25, **LEASE))
        savepoint = await conn.begin_nested()
        explained = await conn.exec_driver_sql(
            f"EXPLAIN (ANALYZE, FORMAT JSON) {sent.statement}", tuple(sent.parameters)
        )
        plan = list(nodes(explained.scalar_one()))
        await savepoint.rollback()

        reads = [node for node in plan if node.get("Index Name") == SUSPECT]
        assert sorted(node["Actual Rows"] for node in reads) == [1, 25]
        assert all(node.get("Rows Removed by Filter", 0) == 0 for node in reads)
        assert not reads_of(plan)[1] & LARGE
