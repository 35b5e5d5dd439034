"""Builds the scorer that the settings ask for, and refuses settings that cannot work before an answer is leased.

What a scorer needs is imported only when that scorer is built: the model libraries take most of a second to load.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final, assert_never
from urllib.parse import urlsplit

from producers.errors import InvalidSettingsError
from worker.scorers.lexical import LexicalScorer
from worker.scorers.protocol import Scorer

if TYPE_CHECKING:
    import httpx2
    from pydantic_ai.models import Model

    from worker.settings import ScoringSettings

OPENAI_URL: Final = "https://api.openai.com/v1"
ANTHROPIC_URL: Final = "https://api.anthropic.com"
# Hosts whose newer models refuse `max_tokens`. Every other server knows it, and some know nothing newer.
_OPENAI_HOSTS: Final = ("openai.com", "openai.azure.com")
_NO_KEY: Final = "no-key"  # the client insists on one; a server of one's own may not need it


def build_scorer(settings: ScoringSettings) -> Scorer:
    """Build the scorer named by ``SCORING_SCORER``.

    ``llm`` asks a language model, ``lexical`` compares words, and ``package.module:factory`` is a scorer of your
    own: the factory is called with the settings and returns it. The current directory is importable.

    Args:
        settings: Settings of the worker process.

    Returns:
        A scorer; whoever asked for it calls its ``aclose``.

    Raises:
        InvalidSettingsError: A setting is missing or cannot work; the message names it.
    """
    match settings.scorer:
        case "lexical":
            return LexicalScorer()
        case "llm":
            return _build_llm(settings)
        case path:
            return _build_own(path, settings)


def _build_llm(settings: ScoringSettings) -> Scorer:
    _check_llm(settings)
    os.environ.setdefault("PYDANTIC_AI_NO_BANNER", "1")  # it would print advertising into our log
    from worker.scorers.llm import LLMScorer, open_http  # noqa: PLC0415 - slow to load, see above

    http = open_http(settings)
    return LLMScorer(settings, _build_model(settings, http), http)


def _check_llm(settings: ScoringSettings) -> None:
    if not settings.llm_model.strip():
        raise InvalidSettingsError(
            "SCORING_LLM_MODEL is not set: expected the name of the model that scores "
            "(or set SCORING_SCORER=lexical)."
        )
    key = settings.llm_api_key.get_secret_value() if settings.llm_api_key else ""
    if not key and (settings.llm_provider == "anthropic" or settings.llm_base_url is None):
        raise InvalidSettingsError(
            f"SCORING_LLM_API_KEY is not set: {settings.llm_provider} needs one "
            "(a server of your own, set with SCORING_LLM_BASE_URL, may need none)."
        )
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise InvalidSettingsError(
            "SCORING_LLM_API_KEY is wrong: expected printable ASCII characters without spaces."
        )
    if settings.llm_base_url is not None and not _is_http_url(settings.llm_base_url):
        raise InvalidSettingsError(
            "SCORING_LLM_BASE_URL is wrong: expected http://HOST:PORT/PATH or https://…."
        )


def _is_http_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:  # a port that is no number, brackets that do not close
        return False


def _build_model(settings: ScoringSettings, http: httpx2.AsyncClient) -> Model[Any]:
    # Keys and URLs are always passed: left out, the libraries would take them from variables that are not ours.
    key = settings.llm_api_key.get_secret_value() if settings.llm_api_key else _NO_KEY
    match settings.llm_provider:
        case "anthropic":
            return _anthropic_model(settings.llm_model, settings.llm_base_url or ANTHROPIC_URL, key, http)
        case "openai":
            return _openai_model(settings.llm_model, settings.llm_base_url or OPENAI_URL, key, http)
        case _:
            assert_never(settings.llm_provider)


def _anthropic_model(name: str, url: str, key: str, http: httpx2.AsyncClient) -> Model[Any]:
    from anthropic import AsyncAnthropic  # noqa: PLC0415 - slow to load, see above
    from pydantic_ai.models.anthropic import AnthropicModel  # noqa: PLC0415 - the same
    from pydantic_ai.providers.anthropic import AnthropicProvider  # noqa: PLC0415 - the same

    client = AsyncAnthropic(api_key=key, base_url=url, max_retries=0, timeout=http.timeout, http_client=http)
    return AnthropicModel(name, provider=AnthropicProvider(anthropic_client=client))


def _openai_model(name: str, url: str, key: str, http: httpx2.AsyncClient) -> Model[Any]:
    from openai import AsyncOpenAI  # noqa: PLC0415 - slow to load, see above
    from pydantic_ai.models.openai import OpenAIChatModel  # noqa: PLC0415 - the same
    from pydantic_ai.profiles.openai import OpenAIModelProfile  # noqa: PLC0415 - the same
    from pydantic_ai.providers.openai import OpenAIProvider  # noqa: PLC0415 - the same
    from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider  # noqa: PLC0415 - the same

    client = AsyncOpenAI(api_key=key, base_url=url, max_retries=0, timeout=http.timeout, http_client=http)
    host = urlsplit(url).hostname or ""
    if any(host == known or host.endswith(f".{known}") for known in _OPENAI_HOSTS):
        return OpenAIChatModel(name, provider=OpenAIProvider(openai_client=client))
    profile = OpenAIModelProfile(
        openai_chat_supports_max_completion_tokens=False,
        openai_supports_strict_tool_definition=False,
        supports_inline_system_prompts=False,  # many chat templates take a system message only in front
    )
    provider = OpenAICompatibleProvider("openai-compatible", openai_client=client, profile=profile)
    return OpenAIChatModel(name, provider=provider)


def _build_own(path: str, settings: ScoringSettings) -> Scorer:
    module_name, _, attribute = path.partition(":")
    if (directory := os.getcwd()) not in sys.path:  # noqa: PTH109 - sys.path holds strings
        sys.path.insert(0, directory)
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except Exception as exc:  # any error may come out of a module that is not ours
        raise InvalidSettingsError(
            f"SCORING_SCORER is wrong: {path} cannot be imported ({_described(exc)}); "
            "expected package.module:factory, importable from the current directory."
        ) from exc
    if not callable(factory):
        raise InvalidSettingsError(
            f"SCORING_SCORER is wrong: {path} cannot be called; expected a function or class."
        )
    try:
        scorer = factory(settings)
    except InvalidSettingsError:
        raise
    except Exception as exc:
        raise InvalidSettingsError(
            f"SCORING_SCORER is wrong: {path} failed when it was called with the settings ({_described(exc)})."
        ) from exc
    if isinstance(scorer, Scorer) and inspect.iscoroutinefunction(scorer.score):
        return scorer
    if inspect.iscoroutine(scorer):
        scorer.close()  # it is never awaited, and Python would warn about that
    raise InvalidSettingsError(
        f"SCORING_SCORER is wrong: {path} returned a {type(scorer).__name__}; "
        "expected an object with the coroutines score(question, answer) and aclose()."
    )


def _described(exc: Exception) -> str:
    """What went wrong and where, without the message: it may quote a key."""
    if isinstance(exc, ModuleNotFoundError):
        return f"there is no module {exc.name}"
    frame = traceback.extract_tb(exc.__traceback__)[-1]
    return f"{type(exc).__name__} at {frame.filename}:{frame.lineno}"
