"""How to connect: one place that knows the driver's time-outs and what PgBouncer needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


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


def create_engine(
    url: str, *, pool_size: int = 5, timeout_seconds: float = 10.0, pgbouncer: bool = False
) -> AsyncEngine:
    """Make an engine with time-outs everywhere. It connects on first use.

    Args:
        url: See :func:`parse_database_url`.
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
        connect_args["server_settings"] = {"application_name": "assessment-scoring"}
    return create_async_engine(
        parsed,
        connect_args=connect_args | arguments,
        hide_parameters=True,  # error messages would quote answers
        **options,
    )
