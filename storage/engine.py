"""How to connect: one place that knows the driver's time-outs and what PgBouncer needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


def create_engine(
    url: str, *, pool_size: int = 5, timeout_seconds: float = 10.0, pgbouncer: bool = False
) -> AsyncEngine:
    """Make an engine with time-outs everywhere. It connects on first use.

    Args:
        url: ``postgresql://…``; any driver in it is replaced by asyncpg.
        pool_size: Connections that are kept; no more are opened.
        timeout_seconds: Longest wait for a free connection, for connecting, and for one statement.
        pgbouncer: True behind PgBouncer in transaction mode. Then the connections are pooled there alone,
            and no statement is prepared under a name that another client could meet.

    Returns:
        The engine; its owner disposes of it.
    """
    connect_args: dict[str, Any] = {"timeout": timeout_seconds, "command_timeout": timeout_seconds}
    options: dict[str, Any] = {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": timeout_seconds}
    if pgbouncer:
        connect_args |= {
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: f"__scoring_{uuid4().hex}__",
        }
        options = {"poolclass": NullPool}
    else:
        # Refused by PgBouncer as an unknown start-up parameter, hence not there.
        connect_args["server_settings"] = {"application_name": "assessment-scoring"}
        # A connection that died while it was idle costs one retry instead of one failed submit.
        options["pool_pre_ping"] = False
    return create_async_engine(
        make_url(url).set(drivername="postgresql+asyncpg"),
        connect_args=connect_args,
        hide_parameters=True,  # error messages would quote answers
        **options,
    )
