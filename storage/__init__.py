"""Tables and every SQL statement of the scoring handoff.

Every function takes the caller's ``AsyncConnection``, never commits, and returns dicts.
"""

from storage.claims import claim_assessment_responses
from storage.engine import create_engine
from storage.errors import (
    InvalidInputError,
    NotMigratedError,
    StorageError,
    StorageUnavailableError,
    SubmissionKeyConflictError,
    UnknownUserError,
)
from storage.questions import publish_questions
from storage.responses import get_responses, get_responses_for_question, get_scores
from storage.submissions import submit_response, submit_responses

__all__ = [
    "InvalidInputError",
    "NotMigratedError",
    "StorageError",
    "StorageUnavailableError",
    "SubmissionKeyConflictError",
    "UnknownUserError",
    "claim_assessment_responses",
    "create_engine",
    "get_responses",
    "get_responses_for_question",
    "get_scores",
    "publish_questions",
    "submit_response",
    "submit_responses",
]
