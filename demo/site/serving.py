"""Serve the site on this machine until Ctrl-C."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import uvicorn

from demo.site.app import create_site

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from demo.site.processes import Breakable
    from producers import ProducerSettings

HOST = "127.0.0.1"
DEFAULT_PORT = 8000
# Streams of events never end by themselves; they are cut after this long.
GRACE_SECONDS = 1


class PortTakenError(RuntimeError):
    """Somebody else listens on the port."""


def listening_socket(port: int) -> socket.socket:
    """Take the port; 0 for any that is free.

    Raises:
        PortTakenError: It is taken, or this user may not take it.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen()
    except (OSError, OverflowError) as exc:
        listening.close()
        reason = exc.strerror if isinstance(exc, OSError) else "no such port"
        raise PortTakenError(
            f"The page can't be served on port {port} ({reason}). Choose another: make demo SERVE=1 PORT=8001"
        ) from None
    return listening


def serve(
    screen: Console, settings: ProducerSettings, listening: socket.socket, breakables: Sequence[Breakable]
) -> None:
    """Serve until SIGINT or SIGTERM, and say where.

    Args:
        screen: Where to say it.
        settings: How the site reaches PostgreSQL and Redis.
        listening: The socket that was taken.
        breakables: What a person may kill and start again.
    """
    host, port = listening.getsockname()
    config = uvicorn.Config(
        create_site(settings, breakables),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    screen.print(f"\nThe student's page: [bold]http://{host}:{port}[/bold]", soft_wrap=True)
    screen.print("Break it, with the buttons under it or from another terminal, and answer meanwhile:")
    for breakable in breakables:
        screen.print(f"  [bold]kill -9 {breakable.pid}[/bold]   # {breakable.name}")
    screen.print("Ctrl-C stops everything.")
    asyncio.run(uvicorn.Server(config).serve(sockets=[listening]))
