"""Redis behind Sentinel: the URL that names it, and a client that follows the primary.

The URL has the form that most Python libraries agree on::

    redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]…]/SERVICE[/NUMBER][?sentinel_password=…]

User and password are those of Redis; ``sentinel_username`` and ``sentinel_password`` are those of the sentinels.
``rediss+sentinel://`` speaks TLS with both. Every other option is one of redis-py's own, for Redis alone;
``ssl_…`` holds for both.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

from redis.asyncio import Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.exceptions import AuthenticationError

RedisT = TypeVar("RedisT", bound=Redis)

DEFAULT_SENTINEL_PORT = 26379
# Each with the scheme of redis-py for a connection to one server.
_SCHEMES = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
_PARTS = re.compile(
    r"(?:(?P<login>[^/?#]*)@)?(?P<hosts>[^/?#@]+)/(?P<service>[\w.-]+)(?:/(?P<db>\d*))?(?:\?(?P<query>[^#]*))?"
)


def is_sentinel_url(url: str) -> bool:
    """Whether this URL names sentinels, and not Redis itself."""
    return url.partition("://")[0].lower() in _SCHEMES


@dataclass(frozen=True, slots=True)
class SentinelAddress:
    """What a URL says. Shows no password when it is printed.

    Args:
        hosts: The sentinels, each with its port.
        service: What the sentinels call this Redis.
        options: For connections to Redis, as redis-py takes them.
        sentinel_options: The same for connections to the sentinels.
    """

    hosts: tuple[tuple[str, int], ...]
    service: str
    options: dict[str, Any] = field(repr=False)
    sentinel_options: dict[str, Any] = field(repr=False)


def _host(given: str) -> tuple[str, int]:
    parts = urlsplit(f"//{given}")
    if not parts.hostname:
        raise ValueError
    return parts.hostname, DEFAULT_SENTINEL_PORT if parts.port is None else parts.port


def parse_sentinel_url(url: str) -> SentinelAddress:
    """Read a URL that names sentinels.

    Raises:
        ValueError: It has another form.
    """
    scheme, _, rest = url.partition("://")
    parts = _PARTS.fullmatch(rest)
    if parts is None:
        raise ValueError
    query = dict(parse_qsl(parts["query"] or ""))
    sentinel_options: dict[str, Any] = {
        name: query.pop(f"sentinel_{name}")
        for name in ("username", "password")
        if f"sentinel_{name}" in query
    }
    # redis-py reads what it knows: here a URL of one server, whose address only the sentinels know.
    login = "" if parts["login"] is None else f"{parts['login']}@"
    server = f"{_SCHEMES[scheme.lower()]}://{login}redis/{parts['db'] or 0}?{urlencode(query)}"
    options = dict(parse_url(server))
    del options["host"]
    if options.pop("connection_class", None):
        options["ssl"] = sentinel_options["ssl"] = True
        sentinel_options |= {name: value for name, value in options.items() if name.startswith("ssl_")}
    return SentinelAddress(
        hosts=tuple(_host(given) for given in parts["hosts"].split(",")),
        service=parts["service"],
        options=options,
        sentinel_options=sentinel_options,
    )


class PrimaryPool(SentinelConnectionPool):
    """redis-py's pool of connections to whichever server is the primary now.

    Every new connection asks the sentinels first. A connection whose server has become a replica is thrown away
    at its first write; it was refused, and is an ordinary lost connection to the caller.
    """

    async def get_master_address(self) -> tuple[str, int]:
        """Ask the sentinels.

        Raises:
            AuthenticationError: They refuse our login, which does not end by itself.
            MasterNotFoundError: None of them knows a primary that is up.
        """
        try:
            address: tuple[str, int] = await super().get_master_address()  # type: ignore[no-untyped-call]
        except MasterNotFoundError as exc:
            if AuthenticationError.__name__ in str(exc):
                raise AuthenticationError("The sentinels refuse this login.") from exc
            raise
        return address

    async def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's
        """Close the connections, and those to the sentinels with the last of them, which redis-py leaves open."""
        try:
            await super().disconnect(inuse_connections)
        finally:
            if inuse_connections:
                await asyncio.gather(
                    *(sentinel.aclose() for sentinel in self.sentinel_manager.sentinels),
                    return_exceptions=True,
                )


def connect_primary(
    url: str, *, timeout_seconds: float, redis_class: type[RedisT], options: dict[str, Any]
) -> RedisT:
    """Make a client of the primary. It connects on first use.

    Args:
        url: ``redis+sentinel://`` or ``rediss+sentinel://``.
        timeout_seconds: Longest wait for all sentinels together, seconds; those that hang cost their share each.
        redis_class: What is made.
        options: For connections to Redis; what the URL says comes first.

    Returns:
        The client; its owner closes it, and with it the connections to the sentinels.

    Raises:
        ValueError: The URL has another form.
    """
    address = parse_sentinel_url(url)
    share_seconds = timeout_seconds / len(address.hosts)
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        address.hosts,
        sentinel_kwargs={
            "socket_timeout": share_seconds,
            "socket_connect_timeout": share_seconds,
            "socket_keepalive": True,
            **address.sentinel_options,
        },
    )
    client: RedisT = sentinel.master_for(
        address.service,
        redis_class=redis_class,
        connection_pool_class=PrimaryPool,
        **options | address.options,
    )
    return client
