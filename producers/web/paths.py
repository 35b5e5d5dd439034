"""The id of a question as a part of a path."""

from __future__ import annotations

from starlette.convertors import Convertor, register_url_convertor


class QuestionIdConvertor(Convertor[str]):
    """Any text: an id may hold slashes, which Starlette's ``str`` leaves out, and lines, which its ``path`` leaves out."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        """Return what stands in the path."""
        return value

    def to_string(self, value: str) -> str:
        """Return it for a path."""
        return value


# Starlette knows convertors by name, in one table for the whole process.
QUESTION_ID = "{question_id:scoring_question_id}"
register_url_convertor("scoring_question_id", QuestionIdConvertor())
