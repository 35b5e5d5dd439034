"""Driver errors, translated at storage's edge by SQLSTATE and constraint name."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from storage.errors import (
    AccessDeniedError,
    InvalidInputError,
    NotMigratedError,
    StorageBusyError,
    StorageError,
    StorageMisconfiguredError,
    StorageUnavailableError,
    SubmissionKeyConflictError,
    UnknownUserError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# SQLSTATE: https://www.postgresql.org/docs/current/errcodes-appendix.html
_BY_CONSTRAINT: dict[tuple[str, str], type[StorageError]] = {
    ("23503", "fk_assessment_responses_user"): UnknownUserError,
    ("23503", "fk_assessment_claims_user"): UnknownUserError,
    ("23503", "fk_assessment_drafts_user"): UnknownUserError,
    (
        "23505",
        "ix_assessment_drafts_user",
    ): StorageBusyError,  # saved by the user while a claim moved it to him
    ("23503", "fk_scoring_handoffs_response"): StorageUnavailableError,  # erased while it was to be rescored
    ("23503", "fk_assessment_scores_response"): StorageUnavailableError,  # scored while it was erased
    ("23505", "uq_assessment_responses_submission_key"): SubmissionKeyConflictError,
}
_BY_STATE: dict[str, type[StorageError]] = {
    "25006": StorageUnavailableError,  # read-only: a standby, or a server put into read-only mode
    "40001": StorageUnavailableError,  # serialization failure
    "40P01": StorageUnavailableError,  # deadlock victim
    "55P03": StorageBusyError,  # somebody else holds a row locked for too long
    "42P01": NotMigratedError,  # no such table
    "42703": NotMigratedError,  # no such column
    "3F000": NotMigratedError,  # no such schema
    "28P01": StorageMisconfiguredError,  # wrong password
    "28000": StorageMisconfiguredError,  # no such role, or it may not connect
    "3D000": StorageMisconfiguredError,  # no such database
    "42501": AccessDeniedError,
}
_BY_CLASS: dict[str, type[StorageError]] = {
    "08": StorageUnavailableError,  # connection exception
    "53": StorageUnavailableError,  # disk full, out of memory, too many connections
    "57": StorageUnavailableError,  # shutdown, crash recovery, cancelled statement
    "58": StorageUnavailableError,  # system error outside PostgreSQL
    "XX": StorageUnavailableError,  # internal error
}


def translate(exc: BaseException) -> StorageError | None:
    """Find the error of ours that says what a driver's error means.

    Args:
        exc: What SQLAlchemy, the driver or the operating system raised.

    Returns:
        The translated error, to be raised ``from exc``; None where the error is a bug rather than a condition.
    """
    if isinstance(exc, StorageError):
        return exc
    if isinstance(exc, PoolTimeoutError):
        return StorageUnavailableError(
            "No PostgreSQL connection became free in time; trying again later is safe."
        )
    driver: BaseException = exc
    if isinstance(exc, DBAPIError):
        driver = getattr(exc, "driver_exception", None) or exc.orig or exc
        if exc.connection_invalidated:
            return StorageUnavailableError()
    state = getattr(driver, "sqlstate", None) or getattr(exc, "sqlstate", None)
    if state is None:
        # No server was reached, or it stopped answering in the middle of a statement.
        lost = isinstance(driver, (OSError, TimeoutError)) or type(driver).__name__ in {
            "InterfaceError",
            "ConnectionDoesNotExistError",
            "InternalClientError",
        }
        return StorageUnavailableError() if lost else None
    return _by_state(state, getattr(driver, "constraint_name", None) or "")


def _by_state(state: str, constraint: str) -> StorageError | None:
    if by_constraint := _BY_CONSTRAINT.get((state, constraint)):
        return by_constraint()
    if state == "23514" and not constraint:
        return StorageUnavailableError(
            "PostgreSQL has no partition for this row yet: somebody must create one."
        )
    if state.startswith("22") or state == "23514":
        # Everything a caller can get wrong is checked before; this is what slipped through.
        return InvalidInputError(constraint or "input", "PostgreSQL cannot hold this value")
    by_state = _BY_STATE.get(state) or _BY_CLASS.get(state[:2])
    return by_state() if by_state else None


def _forget_values(exc: BaseException | None) -> None:
    """Take what was to be stored out of a driver's error and its causes: whoever logs the error prints all of them.

    PostgreSQL's DETAIL shows the whole row that breaks a constraint, and where the caller's engine is not one of ours,
    SQLAlchemy shows every parameter.
    """
    while exc is not None:
        if isinstance(exc, StatementError):
            exc.hide_parameters = True
        if getattr(exc, "detail", None):  # asyncpg's own
            exc.detail = None  # type: ignore[attr-defined]
        if exc.args and isinstance(exc.args[0], str):
            exc.args = (exc.args[0].partition("\nDETAIL:")[0], *exc.args[1:])
        exc = exc.__cause__ or exc.__context__


@contextmanager
def translated() -> Iterator[None]:
    """Run a block; what the driver raises in it leaves as an error of ours, where there is one that fits.

    Neither that error nor its causes show anything of what was to be stored.
    """
    try:
        yield
    except StorageError:
        raise
    except (DBAPIError, PoolTimeoutError, OSError, TimeoutError) as exc:
        _forget_values(exc)
        error = translate(exc)
        if error is None:
            raise
        raise error from exc
