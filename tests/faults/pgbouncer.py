"""PgBouncer in transaction mode, in front of an embedded PostgreSQL."""

from __future__ import annotations

import os
import pwd
import signal

from demo.servers import UNPRIVILEGED_USER, Server, free_port

PROGRAM = "pgbouncer"
POOL_SIZE = 4
"""Connections to PostgreSQL, for all clients together."""

# No line here helps our connections: what they need must hold with PgBouncer's own defaults.
CONFIGURATION = """
[databases]
* = host=127.0.0.1 port={postgres_port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users.txt
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 500
admin_users = postgres
"""


def pgbouncer(postgres: Server, program: str) -> Server:
    """Configure a PgBouncer; whoever asked starts and stops it.

    Args:
        postgres: The server behind it.
        program: Where the binary is.
    """
    folder = postgres.folder.parent / PROGRAM
    folder.mkdir()
    port = free_port()
    (folder / "users.txt").write_text('"postgres" ""\n')
    (folder / "pgbouncer.ini").write_text(
        CONFIGURATION.format(postgres_port=postgres.port, port=port, folder=folder, pool_size=POOL_SIZE)
    )
    user = None
    if os.geteuid() == 0:
        # It refuses to run as root, as PostgreSQL does.
        user = UNPRIVILEGED_USER
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    return Server(
        name=PROGRAM,
        command=[program, str(folder / "pgbouncer.ini")],
        port=port,
        folder=folder,
        stop_signal=signal.SIGTERM,
        user=user,
    )
