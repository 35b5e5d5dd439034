"""What operators' commands show, ask, refuse and record."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import typer
from sqlalchemy import text
from sqlalchemy.engine import make_url

from tests.commands.operating import a_student, bare_answers, history, score_all, scored_answers, scores_each
from tests.factories import bury, count, publish, submit, token
from tests.storage.acting import committed_roles
from worker.commands.rescore import estimated
from worker.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.commands.conftest import Commands

pytestmark = pytest.mark.commits

ACTING = (
    ("rescore", "--all"),
    ("backfill",),
    ("purge", "--older-than", "30"),
    ("erase", "--user", "3"),
)


@pytest.mark.parametrize("words", ACTING, ids=lambda words: words[0])
@pytest.mark.processes
async def test_nothing_is_done_unasked(
    commands: Commands, engine: AsyncEngine, words: tuple[str, ...]
) -> None:
    """Without a terminal to ask at and without --yes, a sentence and exit status 2; the dry run changes nothing."""
    await scored_answers(engine, 3, anonymous=True, days_old=40)
    await a_student(engine, token())
    async with engine.begin() as conn:
        await bare_answers(conn, 2)

    refused = await commands.process(*words)
    dry = await commands.process(*words, "--dry-run")

    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert dry.returncode == 0, dry.stderr
    async with engine.connect() as conn:
        assert await count(conn, "assessment_responses") == 8
        assert await count(conn, "scoring_handoffs") == 3
        assert await count(conn, "scoring_runs") == await count(conn, "scoring_actions") == 0


async def test_a_person_is_asked(
    commands: Commands, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No, and Ctrl-C, change nothing; yes does it."""
    await scored_answers(engine, 2)
    answers = iter([False, None, True])

    def answer(_question: str, *, err: bool) -> bool:
        assert err, "standard output may be read by a program"
        given = next(answers)
        if given is None:
            raise typer.Abort
        return given

    monkeypatch.setattr("typer.confirm", answer)
    monkeypatch.setattr("worker.commands.rescore.must_be_able_to_ask", lambda **_: None)

    for exit_status in (1, 130):
        declined = await commands.run("rescore", "--all")
        assert isinstance(declined.exception, WorkerError)
        assert (str(declined.exception), declined.exception.exit_status) == (
            "Nothing was changed.",
            exit_status,
        )
    assert await commands.json("rescore", "--list") == []

    agreed = await commands.run("rescore", "--all")
    assert agreed.exit_code == 0, agreed.output
    assert "2 answers wait for their new score" in agreed.stdout


async def test_a_rescore_shows_what_it_costs(commands: Commands, engine: AsyncEngine) -> None:
    """From what the scores that it replaces have cost; what they do not tell it calls unknown."""
    await scored_answers(engine, 4)

    dry = await commands.json("rescore", "--model", "old-model", "--dry-run")
    shown = (await commands.run("rescore", "--all", "--dry-run")).stdout

    assert dry["plan"] == {
        "answers": 4,
        "outstanding": 0,
        "with_cost": 4,
        "cost_usd": 1.0,
        "with_tokens": 4,
        "tokens": 400.0,
    }
    assert dry["run"] is None
    assert "Estimated cost: 1.00 USD (known from 4 of these scores)" in shown
    assert "old-model" in shown
    unknown = {"model_id": "m", "answers": 3, "outstanding": 0}
    unknown |= dict.fromkeys(("with_cost", "cost_usd", "with_tokens", "tokens"), 0)
    assert estimated([unknown])["cost_usd"] is None
    assert "No score fits" in (await commands.run("rescore", "--model", "none", "--dry-run")).stdout


async def test_a_rescore_runs_and_is_listed(commands: Commands, engine: AsyncEngine) -> None:
    """Each answer waits in the bulk lane and has two scores in the end; run and record say by whom."""
    await scored_answers(engine, 3)

    done = await commands.json("rescore", "--max-score", "3", "--yes", "--by", "Ada")
    listed = await commands.json("rescore", "--list")
    shown = (await commands.run("rescore", "--list")).stdout
    await score_all(engine)
    waited = await commands.json("rescore", "--resume", str(done["run"]["run_id"]), "--wait")

    assert (done["run"]["changed"], done["run"]["expected"]) == (3, 3)
    assert [run["run_id"] for run in listed] == [done["run"]["run_id"]]
    assert "max_score 3.0" in shown
    assert "until_score_id" not in shown
    assert waited["run"]["unscored"] == {"waiting": 0, "unpublished": 0, "dead": 0}
    assert await scores_each(engine) == {2: 3}
    assert await history(commands) == [("Ada", "rescore", 3), ("Ada", "rescore", 0)]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("rescore",), "say which answers, or give --all"),
        (("rescore", "--all", "--module", "m"), "say which answers, or give --all"),
        (("rescore", "7", "--all"), "a run is named with --resume only"),
        (("rescore", "--resume", "--all"), "give no filters"),
        (("rescore", "--scored-from", "yesterday"), "expected a date or time"),
        (("purge", "--yes"), "say how old"),
        (("purge", "--resume", "--older-than", "3"), "goes on with what the run began with"),
        (("purge", "--older-than", "0"), "greater than or equal to 1"),
        (("backfill", "7"), "a run is named with --resume only"),
        (("erase", "--yes"), "name one student"),
        (("erase", "--user", "1", "--anonymous-token-stdin", "--yes"), "name one student"),
        (("export",), "name one student"),
    ],
)
async def test_slips_are_refused(commands: Commands, words: tuple[str, ...], sentence: str) -> None:
    """With exit status 2, before anything is looked at."""
    refused = await commands.run(*words)

    assert refused.exit_code == 2
    assert sentence in " ".join(refused.output.replace("│", " ").split())


@pytest.mark.processes
async def test_a_run_that_is_not_there_is_refused(commands: Commands) -> None:
    """With a sentence that says where they are listed."""
    for words in (("--resume",), ("--resume", "99")):
        refused = await commands.process("rescore", *words)
        assert refused.returncode == 2
        assert "scoring rescore --list" in refused.stderr


async def test_a_backfill_mends_what_verify_finds(commands: Commands, engine: AsyncEngine) -> None:
    """Answers without score and handoff are handed over, and scored."""
    async with engine.begin() as conn:
        await publish(conn)
        await bare_answers(conn, 3)
    assert (await commands.json("verify", "--full", exit_status=1))[0]["count"] == 3

    dry = await commands.json("backfill", "--dry-run")
    done = await commands.json("backfill", "--yes")
    await score_all(engine)

    assert dry["questions"] == [
        {"module_slug": "biology", "question_id": "photosynthesis", "answers": 3, "unpublished": 0}
    ]
    assert done["run"]["changed"] == 3
    assert await scores_each(engine) == {1: 3}
    assert "nothing to do" in (await commands.run("backfill", "--yes")).stdout


async def test_a_purge_takes_answers_drafts_and_claims(commands: Commands, engine: AsyncEngine) -> None:
    """And records each; the claims of users whose token has nothing left go once they are old."""
    await scored_answers(engine, 3, anonymous=True, days_old=40)
    async with engine.begin() as conn:
        for table, column in (("claims", "applied_at"), ("drafts", "saved_at")):
            other = "user_id, moved, skipped" if table == "claims" else ""
            values = "1, 0, 0" if table == "claims" else ""
            other = other or "module_slug, question_id, answer_text, submission_key"
            values = values or "'m', 'q', 'a', gen_random_uuid()"
            await conn.execute(
                text(
                    f"INSERT INTO assessment_{table} (anonymous_token, {column}, {other})"
                    f" VALUES ('t', now() - interval '40 days', {values})"
                )
            )

    done = await commands.json("purge", "--older-than", "30", "--yes", "--by", "timer")

    assert done["plan"] == {"answers": 3, "scores": 3, "handoffs": 0, "protected": 0, "drafts": 1}
    assert done["run"]["also"] == {"drafts": 1, "claims": 1}
    async with engine.connect() as conn:
        for table in ("responses", "scores", "drafts", "claims"):
            assert await count(conn, f"assessment_{table}") == 0
    details = [row["details"] for row in await commands.json("history")]
    run_id = done["run"]["run_id"]
    assert details[:2] == [{"run": run_id, "claims": 1}, {"run": run_id, "drafts": 1}]
    assert "0 answers, 0 drafts" in (await commands.run("purge", "--older-than", "30", "--yes")).stdout


async def test_a_purge_that_was_killed_before_the_drafts_is_resumed(
    commands: Commands, engine: AsyncEngine
) -> None:
    """Its run is finished with the last answer; --resume alone finds it all the same, and what it has left."""
    assert "there is no unfinished purge run" in str((await commands.run("purge", "--resume")).exception)
    await scored_answers(engine, 3, anonymous=True, days_old=40)
    finished = (await commands.json("purge", "--older-than", "30", "--yes"))["run"]
    async with engine.begin() as conn:
        await conn.execute(
            text(
                "INSERT INTO assessment_drafts"
                " (anonymous_token, module_slug, question_id, answer_text, submission_key, saved_at)"
                " VALUES ('t', 'm', 'q', 'a', gen_random_uuid(), now() - interval '40 days')"
            )
        )

    resumed = (await commands.json("purge", "--resume"))["run"]

    assert (resumed["run_id"], resumed["also"]["drafts"]) == (finished["run_id"], 1)
    async with engine.connect() as conn:
        assert await count(conn, "assessment_drafts") == 0


async def test_a_reason_commands_no_terminal(commands: Commands, engine: AsyncEngine) -> None:
    """It may come from a model: what a terminal would obey is shown and not done."""
    async with engine.begin() as conn:
        await publish(conn)
        await bury(conn, (await submit(conn))["response_id"], reason="\x1b]0;gotcha\x07Refused.\x1b[2J")

    shown = (await commands.run("dead", "list")).stdout

    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "Refused." in shown


async def test_retry_and_dismiss_are_recorded(commands: Commands, engine: AsyncEngine) -> None:
    """With who did it and to which answers; what changed nothing leaves no record."""
    async with engine.begin() as conn:
        await publish(conn)
        first, second = [int((await submit(conn))["response_id"]) for _ in range(2)]
        for response_id in (first, second):
            await bury(conn, response_id, "The model refused.")

    await commands.json("dead", "dismiss", str(first), "--by", "Ada")
    await commands.json("dead", "retry", "--all", "--reason", "refused", "--by", "Bea")
    await commands.json("dead", "retry", str(second), exit_status=1)

    rows = await commands.json("history")
    assert [(row["actor"], row["action"], row["details"]) for row in rows] == [
        ("Bea", "retry", {"reason": "refused", "response_ids": [second]}),
        ("Ada", "dismiss", {"response_ids": [first]}),
    ]
    assert len(await commands.json("history", "--before", str(rows[0]["action_id"]))) == 1
    assert "dismiss" in (await commands.run("history")).stdout


async def test_an_empty_reason_revives_nothing(commands: Commands, engine: AsyncEngine) -> None:
    """It comes from a variable that is not set, and stands in every reason."""
    async with engine.begin() as conn:
        await publish(conn)
        await bury(conn, (await submit(conn))["response_id"], "The model refused.")

    refused = await commands.run("dead", "retry", "--all", "--reason", "")

    assert "reason: must not be empty" in str(refused.exception)
    assert len(await commands.json("dead", "list")) == 1


async def test_who_acts_must_have_a_name(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blank one is refused; a login without a name, as in a container, is known by its number."""
    refused = await commands.run("backfill", "--yes", "--by", " ")
    assert "by: must not be empty" in str(refused.exception)

    def nameless() -> str:
        raise KeyError

    monkeypatch.setattr("getpass.getuser", nameless)
    monkeypatch.setattr("os.getuid", lambda: 4321)
    await commands.json("purge", "--older-than", "30", "--yes")
    assert {row["actor"] for row in await commands.json("history")} == {"uid 4321"}


@pytest.fixture
async def logins(commands: Commands, engine: AsyncEngine) -> AsyncIterator[dict[str, Commands]]:
    """Commands by logins that are members of one role each, and of nothing else."""
    async with committed_roles(engine) as roles:
        async with engine.begin() as conn:
            for role in roles.values():
                await conn.execute(text(f"CREATE ROLE {role}_login LOGIN"))
                await conn.execute(text(f"GRANT {role} TO {role}_login"))
        url = make_url(commands.environment["SCORING_DATABASE_URL"])

        def by(role: str) -> Commands:
            own = url.set(username=f"{role}_login").render_as_string(hide_password=False)
            return replace(commands, environment={**commands.environment, "SCORING_DATABASE_URL": own})

        try:
            yield {part: by(role) for part, role in roles.items()}
        finally:
            async with engine.begin() as conn:
                for role in roles.values():
                    await conn.execute(text(f"DROP ROLE {role}_login"))


async def test_all_of_this_is_for_ops(
    logins: dict[str, Commands], engine: AsyncEngine, tmp_path: Path
) -> None:
    """The ops role can do each of it by itself."""
    await scored_answers(engine, 3, anonymous=True, days_old=40)
    await a_student(engine, token())
    async with engine.begin() as conn:
        await bare_answers(conn, 2)
    ops = logins["ops"]

    done: list[Any] = [
        (await ops.json("rescore", "--outdated", "--max-score", "5", "--dry-run"))["plan"]["answers"],
        (await ops.json("rescore", "--all", "--yes", "--by", "Ada"))["run"]["changed"],
        (await ops.json("backfill", "--yes"))["run"]["changed"],
        (await ops.json("purge", "--older-than", "30", "--yes"))["run"]["changed"],
        (await ops.json("export", "--user", "3", "--output", tmp_path / "f"))["counts"]["response"],
        (await ops.json("erase", "--user", "3", "--yes"))["erased"]["assessment_responses"],
        len(await ops.json("rescore", "--list")),
    ]

    # One of the bare answers is this user's too.
    assert done == [0, 3, 2, 3, 3, 3, 1]
    assert (await ops.run("history")).exit_code == 0


@pytest.mark.processes
async def test_the_others_may_not(logins: dict[str, Commands], engine: AsyncEngine) -> None:
    """A login without the rights is told so in a sentence, and changes nothing."""
    await scored_answers(engine, 2, anonymous=True, days_old=40)
    async with engine.begin() as conn:
        await publish(conn)
        await submit(conn, user_id=3)
        await bare_answers(conn, 1)

    for part in ("web", "worker"):
        for words in (*ACTING, ("export", "--user", "3"), ("history",)):
            yes = () if words[0] in {"export", "history"} else ("--yes",)
            refused = await logins[part].process(*words, *yes)
            assert refused.returncode == 2, (part, words, refused.stderr)
            assert "scoring grant" in refused.stderr
            assert "Traceback" not in refused.stderr
            assert not refused.stdout.startswith("{")

    async with engine.connect() as conn:
        assert await count(conn, "assessment_responses") == 4
        assert await count(conn, "scoring_handoffs") == 1
