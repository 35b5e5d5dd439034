"""What storage raises. The docstring of each error is its default message."""

from __future__ import annotations


class StorageError(Exception):
    """Storage could not do what was asked."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").partition("\n")[0])


class InvalidInputError(StorageError):
    """The input breaks a rule; nothing was stored.

    Args:
        field: The argument that breaks it, as the function names it.
        rule: What was expected, in words that can be shown to the caller. It never repeats the input.
    """

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field}: {rule}; nothing was stored.")
        self.field = field
        self.rule = rule

    def __reduce__(self) -> tuple[type[InvalidInputError], tuple[str, str]]:
        return type(self), (self.field, self.rule)


class UnknownUserError(InvalidInputError):
    """There is no such user; nothing was stored."""

    def __init__(self, field: str = "user_id", rule: str = "there is no such user") -> None:
        super().__init__(field, rule)


class SubmissionKeyConflictError(InvalidInputError):
    """Somebody else has used this submission key; nothing was stored."""

    def __init__(
        self, field: str = "submission_key", rule: str = "this key belongs to a response of another owner"
    ) -> None:
        super().__init__(field, rule)


class DraftChangedError(StorageError):
    """There is another version of this draft than the caller has seen; nothing was changed."""


class NotMigratedError(StorageError):
    """The database lacks our tables, or has an older version of them: run `scoring migrate`."""


class AccessDeniedError(StorageError):
    """This database role may not do that: see `scoring grant`."""


class StorageUnavailableError(StorageError):
    """PostgreSQL cannot be reached or cannot write now; trying again later is safe."""


class StorageBusyError(StorageUnavailableError):
    """Somebody else holds a row locked for too long; trying again later is safe."""


class StorageMisconfiguredError(StorageError):
    """PostgreSQL refuses this login: check user, password and database in SCORING_DATABASE_URL."""
