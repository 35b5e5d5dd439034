"""The README's code is run, not believed."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import textwrap
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from fastapi.testclient import TestClient

from demo.worker_process import worker_process
from storage import publish_questions
from tests.databases import ROOT
from tests.producers.waiting import eventually
from worker.question_files import read_question_files
from worker.scorers.factory import build_scorer
from worker.scorers.protocol import Answer, Question
from worker.settings import ScoringSettings

if TYPE_CHECKING:
    from pathlib import Path

    from fastapi import FastAPI
    from sqlalchemy.ext.asyncio import AsyncEngine

ANSWER = {
    "module_slug": "photosynthesis",
    "question_id": "why-leaves-are-green",
    "answer_text": "Chlorophyll absorbs red and blue light and reflects the green.",
}


def readme_source() -> str:
    """The application that the README shows."""
    readme = (ROOT / "README.md").read_text()
    (source,) = re.findall(r"<!-- tested: .*? -->\n```python\n(.*?)```", readme, re.DOTALL)
    return str(source)


def readme_app() -> ModuleType:
    """The same, as a module."""
    source = readme_source()
    module = ModuleType("readme_app")
    sys.modules[module.__name__] = module  # FastAPI looks its annotations up there
    exec(compile(source, "README.md", "exec"), module.__dict__)
    return module


@pytest.fixture
def environment(database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the README asks to export."""
    ours = {"SCORING_DATABASE_URL": database_url, "SCORING_REDIS_URL": redis_url, "SCORING_SCORER": "lexical"}
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    return dict(os.environ)


@pytest.mark.commits
@pytest.mark.processes
async def test_the_readme_app_stores_scores_and_claims(
    environment: dict[str, str], engine: AsyncEngine, tmp_path: Path
) -> None:
    """The README's FastAPI app, beside a real worker: an answer goes in, its score comes out, a sign-in claims it."""
    async with engine.begin() as conn:
        await publish_questions(conn, read_question_files(ROOT / "demo" / "questions"))
    module = readme_app()
    with worker_process(environment, tmp_path / "worker.log"):
        await asyncio.to_thread(use, module)


@pytest.mark.processes
def test_the_readme_app_is_typed(tmp_path: Path) -> None:
    """Whoever checks his app strictly may copy it as it stands."""
    (tmp_path / "app.py").write_text(readme_source())

    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}", "app.py"],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout.splitlines() == ["Success: no issues found in 1 source file"], (
        done.stdout + done.stderr
    )


async def test_the_readme_scorer_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's own scorer is found by the setting that stands beside it, and scores."""
    readme = (ROOT / "README.md").read_text()
    (source,) = re.findall(r"<!-- own scorer: .*? -->\n  ```python\n(.*?)  ```", readme, re.DOTALL)
    (tmp_path / "my_scorer.py").write_text(textwrap.dedent(source))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    settings = ScoringSettings.model_validate(
        {
            "database_url": "postgresql://localhost/scoring",
            "redis_url": "redis://localhost",
            "scorer": "my_scorer:LengthScorer",
        }
    )

    scorer = build_scorer(settings)
    question = Question("digest", "module", "question", "What?", "Long answers.")
    score = await scorer.score(question, Answer(1, "word " * 50))

    assert score.overall_score == 3.0
    await scorer.aclose()


def use(module: ModuleType) -> None:
    """What a browser does: in a thread, because the test client has an event loop of its own."""
    app: FastAPI = module.app
    with TestClient(app, base_url="http://testserver/assessment/") as client:
        key = {"Idempotency-Key": "first"}
        stored, again = (client.post("responses", json=ANSWER, headers=key) for _ in range(2))
        assert stored.status_code == 201
        assert again.json() == stored.json()
        refused = client.post("responses", json=ANSWER | {"answer_text": "  "})
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["field"] == "answer_text"
        by_form = client.post("responses", data=ANSWER)
        assert by_form.status_code == 415

        shown = asyncio.run(eventually(lambda: scored(client)))
        assert [answer["id"] for answer in shown] == [stored.json()["id"]]
        assert shown[0]["score"]["model_id"].startswith("lexical-")

        app.dependency_overrides[module.signed_in_user] = lambda: 7
        assert client.post("claims", json={}).status_code == 202
        assert "student" not in client.cookies
        mine = asyncio.run(eventually(lambda: client.get("responses").json()["items"]))
        assert mine[0]["id"] == stored.json()["id"]
        assert client.post("claims", json={}).status_code == 403


def scored(client: TestClient) -> list[dict[str, Any]]:
    """The caller's answers, once all are scored."""
    answers: list[dict[str, Any]] = client.get("responses").json()["items"]
    return answers if all(answer["state"] == "scored" for answer in answers) else []
