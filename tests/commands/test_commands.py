"""What each command prints, and how it exits."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from producers.contract import QUEUE_NAME, message_key
from storage.errors import InvalidInputError
from storage.workers import report_worker
from tests.factories import bury, make_overdue, publish, question, submission, submit
from worker.migrations import head_revision

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.commands.conftest import Commands

pytestmark = pytest.mark.commits

QUESTIONS = """
module: biology
questions:
  - id: photosynthesis
    question: What does a plant need light for?
    rubric: Full marks for naming photosynthesis and sugar.
"""


async def dead_response(engine: AsyncEngine, reason: str = "The model refused.") -> int:
    """A dead answer."""
    async with engine.begin() as conn:
        await publish(conn)
        response_id = int((await submit(conn))["response_id"])
        await bury(conn, response_id, reason)
    return response_id


PROVIDER = {
    "name": "models.example/a-model",
    "breaker": "open",
    "shared": True,
    "reason": "The provider failed (HTTP 503).",
    "open_seconds": 12.34,
    "rate_limits": {"shared": True, "requests_per_minute": 600, "requests_left_in_window": 7},
}


async def a_worker_runs(engine: AsyncEngine, *, free_slots: int = 5, host: str = "here") -> None:
    """Report a worker."""
    async with engine.begin() as conn:
        await report_worker(
            conn,
            worker_id=uuid4(),
            host=host,
            pid=1,
            version="1",
            slots=5,
            free_slots=free_slots,
            note=None,
            provider=PROVIDER,
        )


async def test_status_counts_what_waits_and_names_what_is_missing(
    commands: Commands, engine: AsyncEngine
) -> None:
    """`scoring status` counts answers by state and names the questions that answers wait for."""
    async with engine.begin() as conn:
        await publish(conn)
        await submit(conn)
        await submit(conn, question_id="forgotten")
    await dead_response(engine)
    await a_worker_runs(engine)

    status = await commands.json("status")
    shown = (await commands.run("status")).stdout

    assert (status["waiting_live"], status["unpublished"], status["dead"]) == (1, 1, 1)
    assert status["unpublished_questions"] == [
        {"module_slug": "biology", "question_id": "forgotten", "answers": 1}
    ]
    assert status["workers"][0]["host"] == "here"
    assert "forgotten" in shown
    assert "waiting, live" in shown


async def test_status_shows_the_breaker_and_why_it_is_open(commands: Commands, engine: AsyncEngine) -> None:
    """`scoring status` shows each provider: since when and why it is left alone, and what it allows."""
    await a_worker_runs(engine)
    await a_worker_runs(engine)

    status = await commands.json("status")
    shown = " ".join((await commands.run("status")).stdout.split())

    assert [worker["provider"] for worker in status["workers"]] == [PROVIDER, PROVIDER]
    assert "models.example/a-model" in shown
    assert "open for 2 of 2" in shown
    assert "12.3 s" in shown
    assert "The provider failed (HTTP 503)." in shown
    assert "600 requests" in shown


async def test_status_says_when_nobody_works(commands: Commands) -> None:
    """Without a worker, `scoring status` says so and how to start one."""
    assert "scoring worker" in (await commands.run("status")).stdout


async def test_verify_holds_on_a_sound_database(commands: Commands, engine: AsyncEngine) -> None:
    """`scoring verify` exits with 0 where every response has a score or a handoff."""
    async with engine.begin() as conn:
        await submit(conn)

    findings = await commands.json("verify", "--full")

    assert [finding["number"] for finding in findings] == [1, 2, 3, 4, 5, 6]
    assert all(finding["holds"] for finding in findings)


async def test_verify_finds_a_lost_answer(commands: Commands, engine: AsyncEngine) -> None:
    """A response with neither score nor handoff breaks the first invariant, and the exit status says so."""
    async with engine.begin() as conn:
        lost = (await submit(conn))["response_id"]
        await conn.execute(text("DELETE FROM scoring_handoffs"))

    findings = await commands.json("verify", exit_status=1)

    assert findings[0]["holds"] is False
    assert findings[0]["examples"] == [lost]
    assert "BROKEN" in (await commands.run("verify")).stdout


async def test_verify_finds_what_is_left_lying(commands: Commands, engine: AsyncEngine) -> None:
    """A due handoff that outlives a sweep is broken while a worker has free slots, and not checked otherwise."""
    async with engine.begin() as conn:
        await publish(conn)
        response_id = (await submit(conn))["response_id"]
        await make_overdue(conn, response_id)

    unchecked = await commands.json("verify")
    await a_worker_runs(engine)
    broken = await commands.json("verify", exit_status=1)

    assert unchecked[2]["holds"] is None
    assert broken[2]["holds"] is False
    assert broken[2]["examples"] == [response_id]


async def test_verify_finds_a_pickled_payload(commands: Commands, redis_url: str) -> None:
    """A message that is not JSON of the contract breaks the sixth invariant."""
    async with Redis.from_url(redis_url) as redis:
        await redis.zadd(QUEUE_NAME, {"forged": 1})
        await redis.set(message_key("forged"), b"\x80\x05K\x01.")

    findings = await commands.json("verify", exit_status=1)

    assert findings[5]["holds"] is False


async def test_verify_does_without_redis(commands: Commands) -> None:
    """Where Redis is away, what needs it is not checked, and nothing counts as broken."""
    away = replace(
        commands, environment={**commands.environment, "SCORING_REDIS_URL": "redis://127.0.0.1:1/0"}
    )

    findings = await away.json("verify")

    assert findings[5]["holds"] is None


async def test_verify_needs_no_redis_and_says_what_it_left_out(commands: Commands) -> None:
    """A restored backup has none: all else is checked; no program may take that for everything."""
    without = {name: value for name, value in commands.environment.items() if name != "SCORING_REDIS_URL"}
    alone = replace(commands, environment=without)

    ran = await alone.process("verify", "--full", "--json")
    strict = await alone.process("verify", "--strict")
    complete = await commands.process("verify", "--strict")

    assert [finding["holds"] for finding in json.loads(ran.stdout)] == [True] * 5 + [None]
    assert "Not checked, no. 6: Nothing in Redis" in ran.stderr
    assert "SCORING_REDIS_URL is not set" in ran.stderr
    assert (ran.returncode, strict.returncode, complete.returncode) == (0, 1, 0)
    assert complete.stderr == ""


async def test_the_dead_are_listed_shown_dismissed_and_retried(
    commands: Commands, engine: AsyncEngine
) -> None:
    """A dead answer is listed with its reason; dismissed it leaves the list; retried it is due again."""
    response_id = await dead_response(engine, "The model refused. [bold]")

    listed = await commands.json("dead", "list")
    shown = (await commands.run("dead", "list")).stdout
    detail = await commands.json("dead", "show", str(response_id))
    dismissed = await commands.json("dead", "dismiss", str(response_id), "--by", "a teacher")
    listed_then = await commands.json("dead", "list")
    listed_with = await commands.json("dead", "list", "--dismissed")
    retried = await commands.json("dead", "retry", str(response_id))

    assert [row["response_id"] for row in listed] == [response_id]
    assert "The model refused. [bold]" in shown
    assert detail["last_error"] == "The model refused. [bold]"
    assert submission()["answer_text"] not in str(detail)
    assert dismissed == {"dismissed": [response_id], "not_dead": []}
    assert listed_then == []
    assert "a teacher" in listed_with[0]["last_error"]
    assert retried == {"retried": [response_id], "not_dead": []}
    assert (await commands.run("dead", "list")).stdout == "No answer is dead.\n"


async def test_the_dead_are_retried_by_reason(commands: Commands, engine: AsyncEngine) -> None:
    """`--all --reason` retries those whose reason contains the text, and nothing else."""
    refused = await dead_response(engine, "The model refused.")
    await dead_response(engine, "Wrong key.")

    assert await commands.json("dead", "retry", "--all", "--reason", "refused") == {
        "retried": [refused],
        "not_dead": [],
    }
    [recorded] = await commands.json("history")
    assert (recorded["action"], recorded["affected"]) == ("retry", 1)
    assert recorded["details"] == {"reason": "refused", "response_ids": [refused]}
    assert (await commands.run("dead", "retry")).exit_code == 2
    assert (await commands.run("dead", "show", "999999")).exit_code == 1
    assert await commands.json("dead", "retry", "999999", exit_status=1) == {
        "retried": [],
        "not_dead": [999999],
    }


@pytest.mark.parametrize("reason", ["", " \t", "nul\x00", "\udcff"])
async def test_a_reason_that_says_nothing_retries_nothing(
    commands: Commands, engine: AsyncEngine, reason: str
) -> None:
    """`--reason "$UNSET"` in a script is refused, where it would choose all; so is what no reason can contain."""
    response_id = await dead_response(engine)

    for chosen in ("--all", str(response_id)):
        refused = await commands.run("dead", "retry", chosen, "--reason", reason)
        assert isinstance(refused.exception, InvalidInputError), refused.output
        assert refused.exception.field == "reason"

    assert [row["response_id"] for row in await commands.json("dead", "list")] == [response_id]


async def test_questions_are_published_from_files(commands: Commands, tmp_path: Path) -> None:
    """`scoring questions sync` publishes a folder; a second run changes nothing; a dry run publishes nothing."""
    (tmp_path / "biology.yaml").write_text(QUESTIONS)

    dry = await commands.run("questions", "sync", tmp_path, "--dry-run")
    first = await commands.json("questions", "sync", tmp_path)
    second = await commands.json("questions", "sync", tmp_path)

    assert "nothing was published" in dry.stdout
    assert [each["published"] for each in first] == [True]
    assert [each["published"] for each in second] == [False]
    assert "unchanged" in (await commands.run("questions", "sync", tmp_path)).stdout
    assert (await commands.json("questions", "sync", tmp_path, "--dry-run"))[0]["rubric"] == question()[
        "rubric"
    ]


async def test_wrong_question_files_are_refused_in_a_sentence(commands: Commands, tmp_path: Path) -> None:
    """A file that breaks a rule ends the command with 2, names the file, and shows no traceback."""
    (tmp_path / "broken.yaml").write_text("module: biology\n")

    finished = await commands.process("questions", "sync", str(tmp_path))

    assert finished.returncode == 2
    assert "broken.yaml" in finished.stderr
    assert "Traceback" not in finished.stderr


async def test_migrate_creates_the_tables_once(
    commands: Commands, make_database: Callable[[], Awaitable[str]]
) -> None:
    """`scoring migrate` brings an empty database to the head revision; a second run does nothing."""
    empty = replace(
        commands, environment={**commands.environment, "SCORING_DATABASE_URL": await make_database()}
    )

    unmigrated = await empty.process("status")
    first = await empty.json("migrate")
    second = await empty.run("migrate")

    assert unmigrated.returncode == 2
    assert "scoring migrate" in unmigrated.stderr
    assert first == {"before": None, "after": head_revision()}
    assert "up to date" in second.stdout


async def test_grant_prints_its_statements(commands: Commands) -> None:
    """`scoring grant --print` shows what it would run, without running it; names are quoted."""
    shown = (await commands.run("grant", "--print", "--web", "my-web")).stdout
    statements = await commands.json("grant", "--print")

    assert 'TO "my-web";' in shown
    assert any("assessment_scores" in statement for statement in statements)


async def test_grant_creates_roles_that_are_missing(commands: Commands, engine: AsyncEngine) -> None:
    """`scoring grant` creates missing roles without a login, and says so."""
    names = {part: f"test_{part}_{uuid4().hex[:8]}" for part in ("web", "worker", "ops")}
    options = [word for part, name in names.items() for word in (f"--{part}", name)]

    granted = await commands.json("grant", *options)
    again = await commands.run("grant", *options)

    try:
        assert {each["role"] for each in granted} == set(names.values())
        assert all(each["created"] for each in granted)
        assert "was there" in again.stdout
    finally:
        async with engine.begin() as conn:
            for name in names.values():
                await conn.execute(text(f"DROP OWNED BY {name}"))
                await conn.execute(text(f"DROP ROLE {name}"))


async def test_health_asks_for_a_worker_on_this_host(
    commands: Commands, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`scoring health` exits with 0 if a worker on this host reports, with 1 if only others do."""
    monkeypatch.setattr("socket.gethostname", lambda: "this-host")
    await a_worker_runs(engine, host="another-host")
    assert (await commands.run("health")).exit_code == 1

    await a_worker_runs(engine, host="this-host")
    assert (await commands.run("health")).exit_code == 0
    assert (await commands.json("health"))["healthy"] is True


@pytest.mark.parametrize(
    ("changes", "exit_status", "sentence"),
    [
        ({"SCORING_DATABASE_URL": ""}, 2, "SCORING_DATABASE_URL"),
        ({"SCORING_DATABASE_URL": "mysql://localhost/x"}, 2, "SCORING_DATABASE_URL is wrong"),
        ({"SCORING_REDIS_URL": "http://localhost"}, 2, "SCORING_REDIS_URL is wrong"),
        ({"SCORING_SLOTS": "many"}, 2, "SCORING_SLOTS is wrong"),
        ({"SCORING_RENEW_SECONDS": "29"}, 2, "SCORING_RENEW_SECONDS is wrong"),
        ({"SCORING_SCORER": "llm"}, 2, "SCORING_LLM_MODEL is not set"),
        ({"SCORING_SCORER": "nowhere:nothing"}, 2, "SCORING_SCORER is wrong"),
        ({"SCORING_DATABASE_URL": "postgresql://postgres@127.0.0.1:1/postgres"}, 1, "server running"),
        ({"SCORING_DATABASE_URL": "{database_url}_nowhere"}, 2, "SCORING_DATABASE_URL"),
    ],
)
async def test_the_worker_refuses_wrong_settings(
    commands: Commands, changes: dict[str, str], exit_status: int, sentence: str
) -> None:
    """A wrong or missing setting ends the worker at once, with a sentence that names the variable."""
    database_url = commands.environment["SCORING_DATABASE_URL"]
    changed = {name: value.format(database_url=database_url) for name, value in changes.items()}
    environment = {**commands.environment, "SCORING_SCORER": "lexical", **changed}

    finished = await replace(commands, environment=environment).process("worker")

    assert finished.returncode == exit_status, finished.stderr
    assert sentence in finished.stderr
    assert "Traceback" not in finished.stderr


async def test_every_command_has_json_and_help(commands: Commands) -> None:
    """Every command takes `--json` and says what it does."""
    paths = [
        *(["worker"], ["health"], ["status"], ["verify"], ["migrate"], ["grant"]),
        *(["rescore"], ["backfill"], ["purge"], ["erase"], ["export"], ["history"]),
        *(["dead", name] for name in ("list", "show", "retry", "dismiss")),
        ["questions", "sync"],
    ]
    for path in paths:
        shown = await commands.run(*path, "--help")
        assert shown.exit_code == 0
        assert "--json" in shown.stdout, path
    assert (await commands.run("--version")).stdout.strip()


async def test_a_page_that_is_full_leads_to_the_next(commands: Commands, engine: AsyncEngine) -> None:
    """Whoever sees a hundred dead does not take them for all."""
    async with engine.begin() as conn:
        await publish(conn)
        for _ in range(3):
            await bury(conn, (await submit(conn))["response_id"])

    first = (await commands.run("dead", "list", "--limit", "2")).stdout
    rows = await commands.json("dead", "list", "--limit", "2")

    assert f"There may be more: --after {rows[-1]['handoff_id']}" in first
    assert "There may be more" not in (await commands.run("dead", "list")).stdout


async def test_the_list_of_commands_tells_a_newcomer_all(commands: Commands) -> None:
    """No line is cut off on a terminal of 80 columns; settings and exit statuses are there too."""
    narrow = replace(commands, environment={**commands.environment, "COLUMNS": "80"})
    for path in ([], ["dead"], ["questions"]):
        shown = (await narrow.process(*path, "--help")).stdout
        assert "..." not in shown.replace("[ARGS]...", "").replace("SCORING_...", ""), shown
    shown = (await narrow.process("--help")).stdout
    assert "SCORING_DATABASE_URL" in shown
    assert "Exit status: 0 done" in shown


@pytest.mark.parametrize(
    "words",
    [
        ("rescore", "--min-score", "nan", "--dry-run"),
        ("export", "--user", "0"),
        ("dead", "show", "9" * 20),
        ("history", "--before", "9" * 20),
    ],
    ids=" ".join,
)
async def test_who_only_reads_is_not_told_about_storing(commands: Commands, words: tuple[str, ...]) -> None:
    """A refusal of a command says that nothing was changed; these would have stored nothing anyway."""
    finished = await commands.process(*words)

    assert finished.returncode == 2
    assert "nothing was changed" in finished.stderr
    assert "store" not in finished.stderr
