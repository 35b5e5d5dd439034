"""Under which names the port may be asked: a page of somebody else's must not reach it through a name of its own.

In "DNS rebinding" a stranger's host name is made to lead to this machine, so that a browser takes what we serve for the
stranger's own. Such a request always carries that name; one by address, or by a name that we know, is none.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection


def host_of(header: str) -> str:
    """The host of a ``Host`` header, in small letters, without its port."""
    host = header.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")


def is_allowed(header: str | None, allowed: Collection[str]) -> bool:
    """Tell whether a request was meant for us.

    Args:
        header: Its ``Host`` header.
        allowed: Names that lead here, besides ``localhost`` and every address.

    Returns:
        False for every other name, and where there is none.
    """
    if not header:
        return False
    host = host_of(header)
    if host == "localhost" or host in allowed:
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
