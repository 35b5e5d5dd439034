from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from producers.errors import InvalidSettingsError
from worker.scorers.factory import build_scorer
from worker.scorers.lexical import LexicalScorer
from worker.scorers.llm import LLMScorer
from worker.settings import ScoringSettings

if TYPE_CHECKING:
    from pathlib import Path

KEY = SecretStr("sk-CANARY")


def settings(**values: Any) -> ScoringSettings:
    servers = {"database_url": "postgresql://u:p@h/d", "redis_url": "redis://h"}
    return ScoringSettings(**(servers | {"scorer": "llm", "llm_model": "m"} | values))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in the current directory with scorers, good and bad."""
    (tmp_path / "own_scorers.py").write_text(
        "class Good:\n"
        "    def __init__(self, settings): self.settings = settings\n"
        "    async def score(self, question, answer): ...\n"
        "    async def aclose(self): ...\n"
        "class Blocking(Good):\n"
        "    def score(self, question, answer): ...\n"
        "def returns_good(settings): return Good(settings)\n"
        "def returns_nothing(settings): return None\n"
        "def fails(settings): raise RuntimeError('password=CANARY')\n"
        "async def is_async(settings): return Good(settings)\n"
        "NUMBER = 3\n"
    )
    (tmp_path / "own_broken.py").write_text("raise RuntimeError('boom')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    for name in ("own_scorers", "own_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_lexical_needs_no_model() -> None:
    """A worker with the lexical scorer starts without any setting for a model."""
    assert isinstance(build_scorer(settings(scorer="lexical", llm_model="")), LexicalScorer)


def test_lexical_loads_no_model_library() -> None:
    """A worker with the lexical scorer starts fast: nothing of the model libraries is imported."""
    code = (
        "import sys\n"
        "from worker.scorers.factory import build_scorer\n"
        "from worker.settings import ScoringSettings\n"
        "build_scorer(ScoringSettings(database_url='postgresql://u:p@h/d', redis_url='redis://h', scorer='lexical'))\n"
        "print([name for name in ('pydantic_ai', 'openai', 'anthropic', 'httpx2') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "values",
    [
        {"llm_api_key": KEY},
        {"llm_provider": "anthropic", "llm_api_key": KEY},
        {"llm_base_url": "http://127.0.0.1:11434/v1"},
        {"llm_base_url": "https://x.openai.azure.com/openai/v1", "llm_api_key": KEY},
        {"llm_provider": "anthropic", "llm_base_url": "http://127.0.0.1:1", "llm_api_key": KEY},
    ],
)
async def test_llm_is_built_for_every_provider(values: dict[str, Any]) -> None:
    """OpenAI, Anthropic and servers of one's own, these without a key, are built without any request."""
    scorer = build_scorer(settings(**values))

    assert isinstance(scorer, LLMScorer)
    await scorer.aclose()


@pytest.mark.parametrize("name", ["", "  "])
def test_a_missing_model_is_named(name: str) -> None:
    """Without a model's name the message says which variable to set, and what would do without one."""
    with pytest.raises(
        InvalidSettingsError, match=r"^SCORING_LLM_MODEL is not set: .*set SCORING_SCORER=lexical"
    ):
        build_scorer(settings(llm_model=name, llm_api_key=KEY))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"llm_api_key": SecretStr("")},
        {"llm_provider": "anthropic"},
        {"llm_provider": "anthropic", "llm_base_url": "http://127.0.0.1:1"},
    ],
)
def test_a_missing_key_is_named(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that needs a key is refused without ours, even if a library could find another in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-other")

    with pytest.raises(InvalidSettingsError, match=r"^SCORING_LLM_API_KEY is not set"):
        build_scorer(settings(**values))


@pytest.mark.parametrize("key", ["sk-CANARY\n", "sk CANARY", "sk-CANARY…"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(key: str) -> None:
    """A key with a line break or a character beyond ASCII is refused at the start, and not shown."""
    with pytest.raises(InvalidSettingsError, match=r"^SCORING_LLM_API_KEY is wrong") as caught:
        build_scorer(settings(llm_api_key=SecretStr(key)))

    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000/v1", "ftp://h/v1", "http://", "http://h:port/v1", "http://[::1/v1"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """A base URL that could never be reached is a wrong setting, not provider trouble for ever."""
    with pytest.raises(InvalidSettingsError, match=r"^SCORING_LLM_BASE_URL is wrong"):
        build_scorer(settings(llm_base_url=url))


@pytest.mark.parametrize("path", ["own_scorers:Good", "own_scorers:returns_good"])
def test_a_scorer_of_your_own_is_built_with_the_settings(own: None, path: str) -> None:
    """A class or function in the current directory is called with the settings."""
    given = settings(scorer=path)
    scorer: Any = build_scorer(given)

    assert scorer.settings is given


@pytest.mark.parametrize(
    "path",
    [
        "no_such_module:factory",
        "own_scorers:no_such_name",
        "own_broken:factory",
        ":factory",
        "own_scorers:",
        "own_scorers:NUMBER",
        "own_scorers:returns_nothing",
        "own_scorers:fails",
        "own_scorers:is_async",
        "own_scorers:Blocking",
    ],
)
def test_a_scorer_that_cannot_work_is_refused(own: None, path: str) -> None:
    """What cannot be imported or called, or is no scorer, is refused with the name of the variable."""
    with pytest.raises(InvalidSettingsError, match=r"^SCORING_SCORER is wrong") as caught:
        build_scorer(settings(scorer=path))

    assert "CANARY" not in str(caught.value)
