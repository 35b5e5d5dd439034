"""Logs: a fixed sentence plus fields, for people (console) or machines (json)."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from structlog.typing import Processor


def configure_logging(log_format: str, level: str) -> None:
    """Send all logs to standard error.

    Args:
        log_format: ``console`` or ``json``.
        level: The least level that is shown.
    """
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if log_format == "json"
        # Plain tracebacks: the default ones show the values of local variables, answers among them.
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=level, force=True)
    # One line for every message and every HTTP request is noise; what matters is logged by us.
    for chatty in ("arq", "httpx", "httpx2", "httpcore", "openai", "anthropic", "sqlalchemy"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # It writes a traceback for every connection that cannot say good-bye to a server that does not answer.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
