"""A worker's fixtures, for those who watch one."""

from tests.worker.conftest import (
    make_runtime,
    postgres_proxy,
    proxied_database_url,
    redis,
    running,
    runtime,
    scorer,
    settings,
)

__all__ = [
    "make_runtime",
    "postgres_proxy",
    "proxied_database_url",
    "redis",
    "running",
    "runtime",
    "scorer",
    "settings",
]
