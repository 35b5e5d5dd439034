"""How to connect: one place that knows the driver's time-outs and what PgBouncer needs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

# An engine's twin in autocommit. Made once: making it takes longer than taking a connection from it.
_autocommit: WeakKeyDictionary[AsyncEngine, AsyncEngine] = WeakKeyDictionary()

# SQLSTATE read_only_sql_transaction.
_READ_ONLY = "25006"
# A transaction whose client has sent nothing for so many time-outs has lost it.
_IDLE_TIMEOUTS = 3
# libpq's word for it, and asyncpg's.
_SSL_PARAMETERS = ("ssl", "sslmode")
_PARAMETERS = (*_SSL_PARAMETERS, "application_name")


def parse_database_url(url: str) -> tuple[URL, dict[str, Any]]:
    """Read a URL as people write it for PostgreSQL, for any driver.

    Args:
        url: ``postgresql://USER:PASSWORD@HOST:PORT/DATABASE``, also ``postgres://``, with ``sslmode`` (or ``ssl``)
            and ``application_name`` as parameters.

    Returns:
        The URL for SQLAlchemy with asyncpg, and the driver's arguments that stood in its parameters.

    Raises:
        ValueError: This is no URL of PostgreSQL, or has a parameter that the driver does not take.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or parsed.drivername.partition("+")[0] not in {"postgresql", "postgres"}:
        raise ValueError("expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    if unknown := parsed.query.keys() - set(_PARAMETERS):
        raise ValueError(
            f"{', '.join(sorted(unknown))} is not understood; expected no parameters but {', '.join(_PARAMETERS)}"
        )
    arguments: dict[str, Any] = {}
    for name in _SSL_PARAMETERS:
        if name in parsed.query:
            arguments["ssl"] = parsed.query[name]
    if "application_name" in parsed.query:
        arguments["server_settings"] = {"application_name": parsed.query["application_name"]}
    return parsed.set(drivername="postgresql+asyncpg", query={}), arguments


@asynccontextmanager
async def single_statements(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Open a connection for statements each of which may stand alone.

    In autocommit, which saves the round trips of BEGIN and COMMIT. Behind PgBouncer in transaction mode that would
    fail: the driver prepares a statement and runs it, and without a transaction around the two they may reach
    different servers. There, and wherever an engine keeps no connections (which is what one does behind PgBouncer),
    the block is one transaction.

    Args:
        engine: Ours, or a web app's.

    Yields:
        The connection. What was done on it is committed when the block ends.
    """
    if isinstance(engine.pool, NullPool):
        async with engine.begin() as conn:
            yield conn
    else:
        if (twin := _autocommit.get(engine)) is None:
            twin = _autocommit[engine] = engine.execution_options(isolation_level="AUTOCOMMIT")
        async with twin.connect() as conn:
            yield conn


def create_engine(
    url: str, *, pool_size: int = 5, timeout_seconds: float = 10.0, pgbouncer: bool = False
) -> AsyncEngine:
    """Make an engine with time-outs everywhere. It connects on first use.

    Args:
        url: As people write it for PostgreSQL, for any driver; options that the driver does not know are refused.
        pool_size: Connections that are kept; no more are opened.
        timeout_seconds: Longest wait for a free connection, for connecting, and for one statement.
        pgbouncer: True behind PgBouncer in transaction mode. Then the connections are pooled there alone,
            and no statement is prepared under a name that another client could meet.

    Returns:
        The engine; its owner disposes of it.

    Raises:
        ValueError: The URL cannot be used.
    """
    parsed, arguments = parse_database_url(url)
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
        connect_args["server_settings"] = {
            "application_name": "assessment-scoring",
            # Whoever vanishes in the middle of a transaction must not keep its locks until TCP notices, hours later.
            "idle_in_transaction_session_timeout": f"{_IDLE_TIMEOUTS * timeout_seconds * 1000:.0f}",
            **arguments.pop("server_settings", {}),
        }
    engine = create_async_engine(
        parsed,
        connect_args=connect_args | arguments,
        hide_parameters=True,  # error messages would quote answers
        **options,
    )
    event.listen(engine.sync_engine, "handle_error", _leave_read_only_session)
    return engine


def _leave_read_only_session(context: ExceptionContext) -> None:
    """Replace a connection that cannot write: opened while its database was read-only, it stays so as long as it lives."""
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
        context.is_disconnect = True
