"""Tables and every SQL statement of the scoring handoff.

Every function takes the caller's ``AsyncConnection``, never commits, and returns dicts.
"""

from storage.claims import claim_assessment_responses
from storage.drafts import discard_draft, get_draft, save_draft
from storage.engine import create_engine
from storage.errors import (
    DraftChangedError,
    InvalidInputError,
    NotMigratedError,
    StorageError,
    StorageUnavailableError,
    SubmissionKeyConflictError,
    UnknownUserError,
)
from storage.questions import publish_questions
from storage.responses import get_response, get_responses, get_responses_for_question, get_scores
from storage.submissions import submit_response, submit_responses

__all__ = [
    "DraftChangedError",
    "InvalidInputError",
    "NotMigratedError",
    "StorageError",
    "StorageUnavailableError",
    "SubmissionKeyConflictError",
    "UnknownUserError",
    "claim_assessment_responses",
    "create_engine",
    "discard_draft",
    "get_draft",
    "get_response",
    "get_responses",
    "get_responses_for_question",
    "get_scores",
    "publish_questions",
    "save_draft",
    "submit_response",
    "submit_responses",
]
