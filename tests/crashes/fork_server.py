"""Forks the processes that shall die, each in milliseconds: ``python -m tests.crashes.fork_server``.

A new interpreter takes a second to import what a worker needs, and there are hundreds of workers. So one clean process,
without threads and without an event loop, imports it once; what it forks has run nothing yet. Requests are lines of
JSON on standard input: ``{"process": 1, "role": "worker", "given": {…}}`` starts one, ``{"process": 1, "signal": 9}``
sends it a signal. Reports are lines on standard output: its ``pid``, and its ``exit_status``, negative for a signal.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import selectors
import signal
import sys
import traceback
from typing import Any, NoReturn

from demo.servers import die_with_parent
from tests.crashes.roles import ROLES


class ForkServer:
    """The children of this process, by the numbers that the requests gave them."""

    def __init__(self) -> None:
        self._pids: dict[int, int] = {}
        self._unread = b""

    def run(self) -> None:
        """Serve until standard input ends, then end the children."""
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only wakes the selector
        gc.freeze()  # or the children's first collection would copy every page
        with selectors.DefaultSelector() as selector:
            selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
            selector.register(woken, selectors.EVENT_READ)
            _report({"ready": os.getpid()})
            while True:
                for key, _ in selector.select():
                    read = os.read(key.fd, 65536)
                    if key.fd == woken:
                        self._reap()
                    elif read:
                        self._serve(read)
                    else:
                        self._end()
                        return

    def _serve(self, read: bytes) -> None:
        *lines, self._unread = (self._unread + read).split(b"\n")
        for line in lines:
            request = json.loads(line)
            number = int(request["process"])
            if "role" in request:
                self._start(number, request["role"], request["given"])
            elif number in self._pids:  # not reaped yet, so the number cannot be anybody else's
                os.kill(self._pids[number], request["signal"])

    def _start(self, number: int, role: str, given: dict[str, Any]) -> None:
        pid = os.fork()
        if pid == 0:
            _live(role, given)
        self._pids[number] = pid
        _report({"process": number, "pid": pid})

    def _reap(self) -> None:
        for number, pid in list(self._pids.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self._pids[number]
                _report({"process": number, "exit_status": os.waitstatus_to_exitcode(status)})

    def _end(self) -> None:
        for pid in self._pids.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _report(report: dict[str, int]) -> None:
    os.write(sys.stdout.fileno(), json.dumps(report).encode() + b"\n")


def _live(role: str, given: dict[str, Any]) -> NoReturn:
    """Be the new process, to its end."""
    exit_status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with_parent(signal.SIGKILL)
        log = os.open(given.pop("log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        logging.basicConfig(level="INFO", format="%(process)d %(levelname)s %(name)s %(message)s")
        ROLES[role](**given)
        exit_status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, this process must not become a second fork server
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(exit_status)


if __name__ == "__main__":
    ForkServer().run()
