"""The code in the how-tos is run, not believed."""

from __future__ import annotations

import re
import sys
import textwrap
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from storage import get_responses, publish_questions
from tests.databases import ROOT
from tests.factories import question as question_of
from worker.scorers.factory import build_scorer
from worker.scorers.protocol import Answer, Dimension, Question
from worker.settings import ScoringSettings

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine


def block(page: str, mark: str) -> str:
    """The Python below a mark."""
    source = (ROOT / "docs" / "howto" / page).read_text()
    (found,) = re.findall(rf"<!-- {mark}: .*? -->\n *```python\n(.*?)\n *```", source, re.DOTALL)
    return textwrap.dedent(found)


async def test_the_own_scorer_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scorer is found by the name that the page gives it, and scores each dimension."""
    page = (ROOT / "docs" / "howto" / "own-scorer.md").read_text()
    (name,) = re.findall(r"SCORING_SCORER=(\S+) scoring worker", page)
    (tmp_path / "word_count.py").write_text(block("own-scorer.md", "own scorer"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    settings = ScoringSettings.model_validate(
        {"database_url": "postgresql://localhost/scoring", "redis_url": "redis://localhost", "scorer": name}
    )

    scorer = build_scorer(settings)
    asked = Question("digest", "module", "question", "What?", "Long.", dimensions=(Dimension("length"),))
    score = await scorer.score(asked, Answer(1, "word " * 50))

    assert score.overall_score == 3.0
    assert [(each.name, each.score) for each in score.dimensions] == [("length", 3.0)]
    await scorer.aclose()


class Rung:
    """Notes what was announced."""

    def __init__(self) -> None:
        self.response_ids: list[int] = []

    def announce(self, response_ids: Iterable[int]) -> None:
        self.response_ids += response_ids


@pytest.mark.commits
async def test_both_are_stored_or_neither(engine: AsyncEngine) -> None:
    """The answer and the host's own row are committed together; where the second fails, neither is stored or rung."""
    module = ModuleType("own_transaction")
    exec(
        compile(block("own-transaction.md", "own transaction"), "own-transaction.md", "exec"), module.__dict__
    )
    asked = question_of()
    given: dict[str, Any] = {name: asked[name] for name in ("module_slug", "question_id")}
    async with engine.begin() as conn:
        await publish_questions(conn, [asked])
        await conn.execute(text("CREATE TABLE homework (user_id integer, response_id bigint UNIQUE)"))
    rung = Rung()
    try:
        row = await module.hand_in(engine, rung, user_id=1, answer_text="First.", **given)
        async with engine.begin() as conn:
            await conn.execute(text("DROP TABLE homework"))
        with pytest.raises(Exception, match="homework"):
            await module.hand_in(engine, rung, user_id=1, answer_text="Second.", **given)
    finally:
        async with engine.begin() as conn:
            await conn.execute(text("DROP TABLE IF EXISTS homework"))

    assert rung.response_ids == [row["response_id"]]
    async with engine.connect() as conn:
        stored = await get_responses(conn, user_id=1)
    assert [each["answer_text"] for each in stored] == ["First."]
