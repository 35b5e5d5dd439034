"""The producer: what a web app and an auth system call."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from producers.announcer import Announcer
from producers.batching import SubmissionBatcher
from producers.bell import Bell
from producers.errors import ProducerClosedError
from producers.observer import observed
from producers.settings import DatabaseSettings, ProducerSettings, QueueSettings
from producers.tracing import TracedSubmit
from storage.claims import request_claim
from storage.engine import single_statements
from storage.keys import time_ordered_uuid
from storage.limits import max_answer_chars
from storage.translation import translated
from storage.validation import checked_submission

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from uuid import UUID

    from redis.asyncio import Redis
    from sqlalchemy.ext.asyncio import AsyncEngine

    from producers.observer import SubmitObserver

# How long a closing producer waits for Redis; what it does not announce, the sweep finds.
CLOSE_TIMEOUT_SECONDS = 2.0


class Producer:
    """Stores answers and claims, and tells the workers about them.

    Make one per web process, inside its event loop, with :func:`open_producer`.

    Args:
        engine: Where the tables are; stays the caller's.
        redis: Where the workers listen; stays the caller's. Give it time-outs (``socket_timeout``,
            ``socket_connect_timeout``).
        max_chars: Longest accepted answer, characters; by default ``SCORING_MAX_ANSWER_CHARS``.
        observer: Told of every submit, ``producers.metrics.ProducerMetrics`` for example.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        redis: Redis,
        *,
        max_chars: int | None = None,
        observer: SubmitObserver | None = None,
    ) -> None:
        self._engine = engine
        self._announcer = Announcer(Bell(redis))
        self._batcher = SubmissionBatcher(engine, self._announcer.responses)
        self._max_chars = max_chars or max_answer_chars()
        self._observer = observer
        self._closed = False

    async def submit(
        self,
        *,
        user_id: int | None = None,
        anonymous_token: str | UUID | None = None,
        question_id: str,
        module_slug: str,
        learning_outcome_id: str | UUID | None = None,
        content_id: str | UUID | None = None,
        answer_text: str,
        answer_metadata: dict[str, Any] | None = None,
        submission_key: UUID | str | None = None,
    ) -> dict[str, Any]:
        """Store one answer and have it scored. Returns as soon as PostgreSQL has committed it.

        Waits neither for Redis nor for a model. Submits that come at the same time share a transaction, but
        a refused one does not touch the others. Every call is a new attempt, unless it repeats a
        ``submission_key``: pass one (a UUID made in the browser, for example) to make retries harmless.

        Args:
            user_id: The signed-in student; exactly one of this and ``anonymous_token``.
            anonymous_token: The anonymous student's secret, text or UUID.
            question_id: Which question, within its module.
            module_slug: Which module.
            learning_outcome_id: The web app's own reference; stored, not interpreted.
            content_id: The web app's own reference; stored, not interpreted.
            answer_text: What the student wrote.
            answer_metadata: Any JSON mapping of at most 16 KiB.
            submission_key: The same key gives the same row.

        Returns:
            The stored row.

        Raises:
            storage.InvalidInputError: A rule is broken; ``field`` and ``rule`` say which; nothing was stored.
            storage.StorageUnavailableError: PostgreSQL is away. Whether the answer was stored is not known;
                repeating the call with the same ``submission_key`` is safe.
            storage.NotMigratedError: The tables are missing.
            ProducerClosedError: The producer was closed; nothing was stored.
        """
        with observed(self._observer), TracedSubmit() as traced:
            submission = checked_submission(
                {
                    "user_id": user_id,
                    "anonymous_token": anonymous_token,
                    "question_id": question_id,
                    "module_slug": module_slug,
                    "learning_outcome_id": learning_outcome_id,
                    "content_id": content_id,
                    "answer_text": answer_text,
                    "answer_metadata": answer_metadata,
                    # Made here, before the first try, so that our own retries are harmless too.
                    "submission_key": time_ordered_uuid() if submission_key is None else submission_key,
                    "trace_context": traced.trace_context,
                },
                max_chars=self._max_chars,
            )
            return traced.stored(await self._batcher.submit(submission))

    @property
    def submits_waiting(self) -> int:
        """Submits that PostgreSQL has not committed yet; a few at any moment, and more where it is slow."""
        return self._batcher.waiting

    @property
    def redis_is_away(self) -> bool | None:
        """Whether Redis did not take what was announced last; None where nothing has been announced."""
        return self._announcer.is_failing

    def announce(self, response_ids: Iterable[int]) -> None:
        """Tell the workers about responses that the web app stored in a transaction of its own.

        Call it after the commit; earlier, the workers would find nothing. Returns at once and never fails:
        what is not announced is found by the sweep a moment later.

        Args:
            response_ids: As returned by ``storage.submit_response``.
        """
        if not self._closed:
            self._announcer.responses(response_ids)

    async def claim(self, *, anonymous_token: str | UUID, user_id: int) -> int:
        """Make a user the owner of what was answered under a token. Returns when the claim is stored.

        A worker does the rest a moment later, even if everything crashes now. Safe to call at every sign-in.

        Args:
            anonymous_token: The secret under which the student answered.
            user_id: Whose the answers shall be.

        Returns:
            The ``claim_id``.

        Raises:
            storage.InvalidInputError: The token or the user id cannot be stored.
            storage.UnknownUserError: There is no such user.
            storage.StorageUnavailableError: PostgreSQL is away; call again.
            ProducerClosedError: The producer was closed; nothing was stored.
        """
        if self._closed:
            raise ProducerClosedError
        with translated():
            async with single_statements(self._engine) as conn:
                claim_id = await request_claim(conn, anonymous_token=anonymous_token, user_id=user_id)
        self._announcer.claims([claim_id])
        return claim_id

    async def close(self) -> None:
        """Commit what is being submitted, announce it, and refuse everything from now on."""
        self._closed = True
        await self._batcher.close()
        await self._announcer.close(CLOSE_TIMEOUT_SECONDS)


@asynccontextmanager
async def open_producer(
    settings: ProducerSettings | None = None,
    *,
    engine: AsyncEngine | None = None,
    redis: Redis | None = None,
    observer: SubmitObserver | None = None,
) -> AsyncIterator[Producer]:
    """Open the one producer of this process.

    Args:
        settings: By default those of the environment (``SCORING_DATABASE_URL``, ``SCORING_REDIS_URL``, …), as far
            as no engine or no Redis client is given.
        engine: An engine on asyncpg that the web app has already; stays open.
        redis: A Redis client that the web app has already (arq's pool is one); stays open.
        observer: Told of every submit, ``producers.metrics.ProducerMetrics`` for example.

    Yields:
        The producer, until the block ends; then everything submitted is committed.

    Raises:
        InvalidSettingsError: A setting is missing or wrong; the message names the variable.
    """
    if settings is None and engine is None and redis is None:
        settings = ProducerSettings.from_environment()
    own_engine = own_redis = None
    if engine is None:
        engine = own_engine = (settings or DatabaseSettings.from_environment()).engine()
    if redis is None:
        redis = own_redis = (settings or QueueSettings.from_environment()).redis()
    producer = Producer(
        engine, redis, max_chars=settings.max_answer_chars if settings else None, observer=observer
    )
    try:
        yield producer
    finally:
        await producer.close()
        if own_redis is not None:
            await own_redis.aclose()
        if own_engine is not None:
            await own_engine.dispose()
