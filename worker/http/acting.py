"""Acts for an operator: retries and dismisses, and writes down who did, in one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from storage.actions import latest_actions, record_action
from storage.dead import dismiss_dead, retry_dead
from storage.dead_kinds import dismiss_kind, may_act, retry_kind
from storage.errors import StorageError
from storage.reading import reading
from storage.translation import translated
from worker.http.shared_look import SharedLook

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

# Rights change seldom, and what people did lately is shown beside what they may do.
KEEP_SECONDS = 5.0
LOOK_SECONDS = 2.0
SHOWN_ACTIONS = 10
# Ids that go into the record; a thousand more would tell nobody more.
RECORDED_IDS = 100


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be acted on: one response, or all of a kind up to the last one that was seen.

    ``seen_dead``: who asks saw it dead, so a dismissal that came between is not undone.
    """

    response_id: int | None = None
    seen_dead: bool = False
    kind: str | None = None
    until_handoff_id: int = 0


@dataclass(frozen=True, slots=True)
class Rights:
    """Whether anything can be done with this login, why not, and what was done lately."""

    may_act: bool
    problem: str | None
    actions: list[dict[str, Any]]


class Acting:
    """Acts with a login that may.

    Args:
        engine: Of that login.
        own_login: Whether it is the worker's own, for want of another.
    """

    def __init__(self, engine: AsyncEngine, *, own_login: bool) -> None:
        self._engine = engine
        self._own_login = own_login
        self.look = SharedLook(self._rights, keep_seconds=KEEP_SECONDS)

    async def perform(self, action: Literal["retry", "dismiss"], target: Target, *, actor: str) -> list[int]:
        """Do it and record it, or neither.

        Args:
            action: What.
            target: On what.
            actor: Who says so.

        Returns:
            The responses that were changed. None where somebody else was faster, and then nothing is recorded.

        Raises:
            StorageError: PostgreSQL is away, or the login may not.
        """
        with translated():
            async with self._engine.begin() as conn:
                changed = await _act(conn, action, target, actor)
                if changed:
                    await record_action(
                        conn,
                        actor=actor,
                        action=action,
                        affected=len(changed),
                        details=_details(target, changed),
                    )
        self.look.forget()
        return changed

    async def _rights(self) -> Rights:
        try:
            with translated():
                async with reading(self._engine, timeout_seconds=LOOK_SECONDS) as conn:
                    if not await may_act(conn):
                        return Rights(may_act=False, problem=self._refusal(), actions=[])
                    return Rights(
                        may_act=True, problem=None, actions=await latest_actions(conn, limit=SHOWN_ACTIONS)
                    )
        except StorageError as exc:
            name = "The worker's login" if self._own_login else "The login of SCORING_CONSOLE_DATABASE_URL"
            return Rights(may_act=False, problem=f"{name} cannot be used now: {exc}", actions=[])

    def _refusal(self) -> str:
        if self._own_login:
            return (
                "Nobody can act here: the worker's own database login may not record who acts. "
                "Set SCORING_CONSOLE_DATABASE_URL to a login that is a member of scoring_ops."
            )
        return (
            "Nobody can act here: the login of SCORING_CONSOLE_DATABASE_URL may not record who acts. "
            "Make it a member of scoring_ops."
        )


async def _act(
    conn: AsyncConnection, action: Literal["retry", "dismiss"], target: Target, actor: str
) -> list[int]:
    if target.kind is not None:
        until = target.until_handoff_id
        if action == "retry":
            return await retry_kind(conn, kind=target.kind, until_handoff_id=until)
        return await dismiss_kind(conn, kind=target.kind, until_handoff_id=until, dismissed_by=actor)
    if target.response_id is None:
        return []
    if action == "retry":
        return await retry_dead(conn, response_ids=[target.response_id], only_dead=target.seen_dead)
    return await dismiss_dead(conn, response_ids=[target.response_id], dismissed_by=actor)


def _details(target: Target, changed: list[int]) -> dict[str, Any]:
    details: dict[str, Any] = {"from": "console", "response_ids": sorted(changed)[:RECORDED_IDS]}
    if target.kind is not None:
        details |= {"kind": target.kind, "until_handoff_id": target.until_handoff_id}
    return details
