"""How large what we store may be. Each number is checked before a statement is sent."""

from __future__ import annotations

import os

DEFAULT_MAX_ANSWER_CHARS = 20_000
# A page of metadata is plenty; JSONB beyond 2 KiB leaves the row and slows every read of it.
MAX_METADATA_BYTES = 16 * 1024
# Readers of JSON recurse; nobody describes an answer this deeply.
MAX_METADATA_DEPTH = 32
# Keys of ours are indexed; a b-tree entry must stay below 2,704 bytes, at up to 4 bytes a character.
MAX_KEY_CHARS = 200
MAX_QUESTION_CHARS = 100_000
# What may go on of a trace. A traceparent of today has 55 characters, later versions may append to it; of a tracestate
# 512 is what everybody must pass on.
MAX_TRACE_CONTEXT_CHARS = {"traceparent": 128, "tracestate": 512}


def max_answer_chars() -> int:
    """The longest accepted answer, in characters: ``SCORING_MAX_ANSWER_CHARS`` or 20,000.

    Read from the environment so that a web app which calls storage directly has the same limit as a producer.

    Raises:
        ValueError: The variable is set and is not a positive whole number.
    """
    text = os.environ.get("SCORING_MAX_ANSWER_CHARS")
    if text is None:
        return DEFAULT_MAX_ANSWER_CHARS
    if not text.strip().isdecimal() or int(text) < 1:
        msg = "SCORING_MAX_ANSWER_CHARS is wrong: expected a positive whole number."
        raise ValueError(msg)
    return int(text)
