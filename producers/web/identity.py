"""Who calls, as the host app says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

from storage.validation import checked_owner

if TYPE_CHECKING:
    from uuid import UUID


class Whose(TypedDict):
    """The two arguments by which every function of ``storage`` and ``producers`` knows an owner."""

    user_id: int | None
    anonymous_token: str | UUID | None


@dataclass(frozen=True, slots=True)
class Identity:
    """Who calls: a signed-in user, or somebody who is known by a secret token.

    Its ``repr`` does not show the token.

    Args:
        user_id: Of a signed-in student.
        anonymous_token: The secret of one who is not signed in, best from an HttpOnly cookie. Never from the URL.

    Raises:
        InvalidInputError: Both, neither, or one that cannot be. Raised while the host's dependency runs, this
            becomes a reply with status 422.
    """

    user_id: int | None = None
    anonymous_token: str | UUID | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        checked_owner(self.user_id, self.anonymous_token)

    @property
    def whose(self) -> Whose:
        """As keyword arguments."""
        return {"user_id": self.user_id, "anonymous_token": self.anonymous_token}
