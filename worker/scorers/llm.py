"""Scores answers with a language model: OpenAI, anything that speaks its protocol, or Anthropic.

Import this module only when the scorer is really built: the model libraries take most of a second to load.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import httpx2
from pydantic_ai import Agent, ModelRetry, RunContext, ToolOutput, capture_run_messages
from pydantic_ai import exceptions as trouble
from pydantic_ai.messages import ModelRequest, ModelResponse, UserPromptPart
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RunUsage, UsageLimits

from worker.scorers.outcomes import (
    AttemptFailed,
    Hopeless,
    Misconfigured,
    ProviderTrouble,
    Refused,
    ScoringError,
)
from worker.scorers.prompt import PROMPT_VERSION, Verdict, build_prompt, by_dimension, problem_of
from worker.scorers.protocol import Answer, DimensionScore, Question, Score, Usage

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage
    from pydantic_ai.models import Model, ModelRequestParameters

    from worker.settings import ScoringSettings

_REPAIRS: Final = 1
_CONNECT_SECONDS: Final = 10.0  # a server that does not even take a connection for so long is down
_KEEPALIVE_SECONDS: Final = (
    30.0  # longer than the pauses of a busy worker, shorter than a load balancer's patience
)
_MAX_RETRY_AFTER_SECONDS: Final = 3600.0  # a provider that asks for more is asked again all the same
_MAX_MODEL_NAME_CHARS: Final = 200

# At DEBUG these write whole requests, with the answer in them, into the log.
_CHATTY_LOGGERS: Final = ("openai", "anthropic", "httpx2", "httpcore2")

# The few error codes that tell more than the category does. Never repeat a code that is not from here.
_FILTER_CODES: Final = frozenset({"content_filter", "content_policy_violation", "invalid_prompt"})
_PARAMETER_CODES: Final = frozenset({"unsupported_parameter", "unsupported_value", "unknown_parameter"})

_HTTP_WAIT: Final = frozenset({408, 409, 425})  # time-out, conflict, too early: says nothing about the answer
_HTTP_TOO_LARGE: Final = 413

# The library's categories of failure. The first that fits counts, so the special stand before the general.
_MISCONFIGURED: Final[dict[type[Exception], str]] = {
    trouble.ModelQuotaExceededError: "The account's quota or credit is used up{said}: top it up or change SCORING_LLM_API_KEY.",
    trouble.ModelAuthenticationError: "The model server does not accept the key{said}: check SCORING_LLM_API_KEY.",
    trouble.ModelNotFoundError: "The server knows no such model or path{said}: check SCORING_LLM_MODEL and SCORING_LLM_BASE_URL.",
    # May be this answer's fault or ours. Counted as ours, so that a parameter which the server does not take opens
    # the breaker after a few answers instead of burying all of them.
    trouble.ModelRequestRejectedError: "The model server rejects the request{said}: if other answers fail too, check the SCORING_LLM_ settings.",
}
_HOPELESS: Final[dict[type[Exception], str]] = {
    trouble.ModelContextWindowExceededError: "Question and answer are longer than the model can read{said}.",
}
_PROVIDER_TROUBLE: Final[dict[type[Exception], str]] = {
    trouble.ModelRateLimitError: "The provider limits our rate{said}.",
    trouble.ModelUnavailableError: "The provider is overloaded or unavailable{said}.",
    trouble.ModelServerError: "The provider failed{said}.",
    trouble.ModelRequestTimeout: "The provider did not reply in time.",
    trouble.ModelTimeoutError: "The provider did not reply in time.",
    trouble.ModelConnectionError: "The connection to the provider failed.",
}


@dataclass(slots=True, repr=False)
class _Call:
    """What the output check needs to know of one call, and what it last found wrong, in words of ours."""

    question: Question
    problem: str = "it was not in the form that was asked for"


def open_http(settings: ScoringSettings) -> httpx2.AsyncClient:
    """A client whose time-outs are the settings', and which makes none of the process's slots wait for another."""
    seconds = settings.llm_timeout_seconds
    return httpx2.AsyncClient(
        timeout=httpx2.Timeout(seconds, connect=min(_CONNECT_SECONDS, seconds)),
        # The slots are the only limit on calls at a time, so none stands here; each keeps a connection of its own.
        limits=httpx2.Limits(
            max_connections=None,
            max_keepalive_connections=settings.slots,
            keepalive_expiry=_KEEPALIVE_SECONDS,
        ),
    )


class LLMScorer:
    """Scores answers with one model; hundreds at once, none of which knows of another.

    A reply that is malformed or off the scale is repaired once in the same call budget. HTTP retries are off:
    trying again belongs to the handoff, which sees every failure.

    Args:
        settings: Valid settings.
        model: The model, whose client neither retries nor waits for a free connection.
        http: What that client sends with; closed with this scorer.
    """

    def __init__(self, settings: ScoringSettings, model: Model[Any], http: httpx2.AsyncClient) -> None:
        for name in _CHATTY_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        self._provider = settings.llm_provider
        self._model_name = settings.llm_model
        self._http = http
        self._agent = _build_agent(_Boundary(model), settings)

    async def score(self, question: Question, answer: Answer) -> Score:
        """Score one answer; see :class:`~worker.scorers.protocol.Scorer` for what is returned and raised."""
        outcome = await self._score(question, answer)
        if isinstance(outcome, ScoringError):
            # Raised here, outside any handler: the provider's exception holds what it replied, and no
            # traceback or log of ours may come to it through `__cause__` or `__context__`.
            raise outcome
        return outcome

    async def aclose(self) -> None:
        """Close the connections to the model server."""
        await self._http.aclose()

    async def _score(self, question: Question, answer: Answer) -> Score | ScoringError:
        prompt = build_prompt(question, answer)
        call = _Call(question)
        started = time.monotonic()
        with capture_run_messages() as messages:
            try:
                result = await self._agent.run(
                    prompt.user,
                    instructions=prompt.system,
                    deps=call,
                    usage_limits=UsageLimits(request_limit=1 + _REPAIRS),
                )
            except Exception as exc:  # noqa: BLE001 - every failure has an outcome; cancellation is no Exception
                replies = [message for message in messages if isinstance(message, ModelResponse)]
                cut_off = bool(replies) and replies[-1].finish_reason == "length"
                return outcome_of(exc, call.problem, cut_off=cut_off)
        return _score_of(
            result.output,
            question,
            model_id=self._model_id(result.response.model_name),
            usage=_usage_of(result.usage, time.monotonic() - started),
        )

    def _model_id(self, replied: str | None) -> str:
        """The model's name as its server states it, which is more exact than the alias that was asked for."""
        name = replied if replied and replied.isprintable() else self._model_name
        return f"{self._provider}:{name[:_MAX_MODEL_NAME_CHARS]}"


class _Boundary(WrapperModel):
    """What goes to a model server and comes from it, in the form that every server can bear."""

    def prepare_messages(
        self, messages: list[ModelMessage], model_request_parameters: ModelRequestParameters | None = None
    ) -> list[ModelMessage]:
        """Join what the library says next to an answer with the answer: some chat templates refuse two user turns."""
        return [_joined(message) for message in super().prepare_messages(messages, model_request_parameters)]

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Turn a reply that does not follow the protocol, as an error page with status 200, into provider trouble.

        It comes from something in between, not from the model: it must not use up attempts.
        """
        try:
            return await super().request(messages, model_settings, model_request_parameters)
        except UnicodeError:  # the request could not be encoded; that is about the answer
            raise
        except (trouble.UnexpectedModelBehavior, AttributeError, LookupError, TypeError, ValueError) as exc:
            raise trouble.ModelAPIError(self.model_name, "the reply does not follow the protocol") from exc


def _joined(message: ModelMessage) -> ModelMessage:
    texts = [
        part.content
        for part in message.parts
        if isinstance(part, UserPromptPart) and isinstance(part.content, str)
    ]
    if not isinstance(message, ModelRequest) or not len(texts) == len(message.parts) > 1:
        return message
    return replace(message, parts=[UserPromptPart("\n\n".join(texts))])


def _build_agent(model: Model[Any], settings: ScoringSettings) -> Agent[_Call, Verdict]:
    model_settings = ModelSettings(
        max_tokens=settings.llm_max_output_tokens,
        # The HTTP client's time-out starts anew with every byte; this one ends a reply that only drips.
        request_timeout=settings.llm_timeout_seconds,
        # An answer with `<system>` in it makes the library add a note to the message. Without this it would also
        # change the head of the prompt, which is cached, and which already says that an answer is only data.
        framing_announcement="never",
        cache={"messages": False},  # instructions and rubric serve many answers, an answer only one
    )
    if settings.llm_temperature is not None:
        model_settings["temperature"] = settings.llm_temperature
    agent = Agent(
        model,
        # A forced tool call is the form of structured output that the most servers know: OpenAI and Anthropic
        # hold the model to it, vLLM guides the decoding by the tool's schema, LM Studio and Ollama offer it to
        # every model with tools. JSON schema as `response_format` is missing in many gateways.
        output_type=ToolOutput(Verdict, name="submit_score", description="Submit the score of the answer"),
        deps_type=_Call,
        retries={"tools": _REPAIRS, "output": _REPAIRS},
        model_settings=model_settings,
        end_strategy="early",
        name="scorer",
    )

    @agent.output_validator
    def check(ctx: RunContext[_Call], verdict: Verdict) -> Verdict:
        problem = problem_of(verdict, ctx.deps.question)
        if problem is not None:
            ctx.deps.problem = problem
            raise ModelRetry(f"The score cannot be used: {problem}. Submit it again, corrected.")
        return verdict

    return agent


def outcome_of(exc: Exception, problem: str, *, cut_off: bool = False) -> ScoringError:
    """Which outcome a failure of the model library is, with a reason that holds no word of provider or answer.

    Args:
        exc: What the library raised.
        problem: What was wrong with the model's last reply, in words of ours; used where it gave up on the reply.
        cut_off: Whether that reply ended at the token limit.

    Returns:
        The outcome to raise.
    """
    match exc:
        case trouble.ContentFilterError():
            return Refused("The model or its content filter refused to score this answer.")
        case trouble.UnexpectedModelBehavior() if cut_off:
            return AttemptFailed(
                "The reply was cut off at its token limit: raise SCORING_LLM_MAX_OUTPUT_TOKENS."
            )
        case trouble.UnexpectedModelBehavior() | trouble.UsageLimitExceeded():
            return AttemptFailed(f"The model's reply could not be used, even after one repair: {problem}.")
        case trouble.ModelAPIError():
            return _outcome_of_api_error(exc)
        case _:
            return AttemptFailed(f"The model call failed in an unforeseen way ({type(exc).__name__}).")


def _outcome_of_api_error(exc: trouble.ModelAPIError) -> ScoringError:
    status = _status(exc)
    said = f" (HTTP {status})" if status else ""
    unmapped = not isinstance(exc, (*_MISCONFIGURED, *_HOPELESS, *_PROVIDER_TROUBLE))
    rejected = isinstance(exc, trouble.ModelRequestRejectedError)
    if rejected and exc.provider_error_code in _FILTER_CODES:
        return Refused(f"The provider's content filter refused this answer{said}.")
    if rejected and exc.provider_error_code in _PARAMETER_CODES:
        reason = f"The model does not take one of our parameters{said}: check SCORING_LLM_TEMPERATURE and SCORING_LLM_MODEL."
        return Misconfigured(reason)
    if status == _HTTP_TOO_LARGE:
        return Hopeless(f"Question and answer are larger than the model server accepts{said}.")
    if unmapped and status is not None and status not in _HTTP_WAIT:
        return Misconfigured(
            f"The address does not behave like a model server{said}: check SCORING_LLM_BASE_URL."
        )
    for outcome, reasons in ((Hopeless, _HOPELESS), (Misconfigured, _MISCONFIGURED)):
        for category, reason in reasons.items():
            if isinstance(exc, category):
                return outcome(reason.format(said=said))
    fitting = (reason for category, reason in _PROVIDER_TROUBLE.items() if isinstance(exc, category))
    text = next(fitting, "The provider's reply could not be used{said}.")
    return ProviderTrouble(text.format(said=said), retry_after_seconds=_retry_after_seconds(exc))


def _status(exc: trouble.ModelAPIError) -> int | None:
    # A redirect, which is not followed, arrives without a status of its own.
    status = (
        exc.status_code
        if isinstance(exc, trouble.ModelHTTPError)
        else getattr(exc.__cause__, "status_code", None)
    )
    return status if isinstance(status, int) else None


def _retry_after_seconds(exc: trouble.ModelAPIError) -> float | None:
    seconds = exc.retry_after
    if seconds is None and isinstance(exc, trouble.ModelHTTPError) and exc.headers:
        try:  # the library reads whole seconds and dates; some servers send fractions
            seconds = float(exc.headers.get("retry-after", ""))
        except ValueError:
            return None
    if seconds is None or math.isnan(seconds):
        return None
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_SECONDS)


def _score_of(verdict: Verdict, question: Question, *, model_id: str, usage: Usage) -> Score:
    return Score(
        overall_score=verdict.overall_score,
        reasoning=verdict.reasoning,
        dimensions=tuple(
            DimensionScore(name=name, score=dimension.score, note=dimension.note)
            for name, dimension in by_dimension(verdict, question).items()
        ),
        key_observations=tuple(verdict.key_observations),
        model_id=model_id,
        prompt_version=PROMPT_VERSION,
        usage=usage,
    )


def _usage_of(used: RunUsage, seconds: float) -> Usage:
    return Usage(
        requests=used.requests,
        input_tokens=used.input_tokens,
        output_tokens=used.output_tokens,
        # From the price list that comes with the library; models that it does not know have no price here.
        cost_usd=float(used.cost) if used.cost is not None else None,
        seconds=seconds,
    )
