"""The demo's site as a host app: its headers, cookies and refusals, and how it starts and stops."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from demo.site.visitors import TOKEN_COOKIE, USER_COOKIE, Visitors
from tests.databases import ROOT
from tests.page.site import start_site, stop_site
from tests.producers.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.conftest import GivenServers
    from tests.page.site import Site

pytestmark = pytest.mark.processes


@pytest.fixture
async def client(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    """A browser that has loaded the page."""
    async with httpx.AsyncClient(base_url=site.url) as client:
        (await client.get("/")).raise_for_status()
        yield client


async def test_the_page_runs_only_its_own_files(client: httpx.AsyncClient) -> None:
    """A policy without inline scripts or styles, on every reply; nothing in the page needs them."""
    for path in ("/", "/static/main.js", "/api/me", "/nowhere"):
        reply = await client.get(path)
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
    page = (await client.get("/")).text
    assert "<style" not in page
    assert " style=" not in page
    assert "<script>" not in page


async def test_cookies_are_out_of_reach(site: Site) -> None:
    """No script reads them, and no other site sends them along with what it makes the browser send."""
    async with httpx.AsyncClient(base_url=site.url) as client:
        first = await client.get("/")
        again = await client.get("/")

    [given] = [line for line in first.headers.get_list("set-cookie") if line.startswith(TOKEN_COOKIE)]
    assert "HttpOnly" in given
    assert "SameSite=lax" in given
    assert "set-cookie" not in again.headers


async def test_tokens_change_at_sign_in_and_sign_out(client: httpx.AsyncClient) -> None:
    """Nobody adds to the answers of who sat here before."""
    tokens = [client.cookies[TOKEN_COOKIE]]
    marks = [(await client.get("/api/me")).json()["mark"]]
    for path, body in (("/demo/sign-in", {"user_id": 105}), ("/demo/sign-out", None)):
        assert (await client.post(path, json=body)).status_code == 204
        tokens.append(client.cookies[TOKEN_COOKIE])
        marks.append((await client.get("/api/me")).json()["mark"])

    assert len(set(tokens)) == 3
    assert len(set(marks)) == 3
    assert not any(token in mark for token in tokens for mark in marks)
    assert USER_COOKIE not in client.cookies


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/assessment/responses"),
        ("PUT", "/assessment/drafts/photosynthesis/why-leaves-are-green"),
        ("POST", "/assessment/responses"),
        ("POST", "/demo/sign-in"),
        ("POST", "/demo/sign-out"),
    ],
)
async def test_a_page_that_was_loaded_for_somebody_else_is_refused(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    """Whatever it asks, and whether it reads or writes; for its own person it is not."""
    before = (await client.get("/api/me")).json()["mark"]
    (
        await client.post("/demo/sign-in", json={"user_id": 105}, headers={"page-of": before})
    ).raise_for_status()

    refused = await client.request(method, path, json={"user_id": 106}, headers={"page-of": before})

    assert refused.status_code == 412
    me = (await client.get("/api/me")).json()
    assert me["user"]["id"] == 105
    assert (await client.get("/assessment/responses", headers={"page-of": me["mark"]})).status_code == 200


@pytest.mark.parametrize("forged", ["105", "105.", "105.00", "105." + "0" * 64, "x.y", "²." + "0" * 64])
async def test_a_forged_sign_in_is_none(client: httpx.AsyncClient, forged: str) -> None:
    """Only what this site sealed counts."""
    header = f"{TOKEN_COOKIE}={client.cookies[TOKEN_COOKIE]}; {USER_COOKIE}={forged}"
    reply = await client.get("/api/me", headers=[(b"cookie", header.encode())])

    assert reply.json()["user"] is None


async def test_another_sites_page_may_do_nothing(client: httpx.AsyncClient) -> None:
    """Neither kill a process, nor sign anybody in, nor reach us under a name of its own."""
    foreign = {"origin": "https://elsewhere.example"}
    before = (await client.get("/demo/processes")).json()

    assert (await client.post("/demo/processes/worker/kill", headers=foreign)).status_code == 403
    assert (await client.post("/demo/sign-in", json={"user_id": 105}, headers=foreign)).status_code == 403
    assert (await client.post("/demo/sign-out", headers={"origin": "http://["})).status_code == 403
    assert (await client.get("/", headers={"host": "elsewhere.example"})).status_code == 400
    assert (await client.get("/demo/processes")).json() == before


async def test_who_has_no_cookie_is_nobody(site: Site) -> None:
    """Without a cookie of ours there is nothing to read or write."""
    async with httpx.AsyncClient(base_url=site.url) as stranger:
        for path in ("/api/me", "/assessment/responses", "/assessment/events"):
            assert (await stranger.get(path)).status_code == 401
        stranger.cookies.set(TOKEN_COOKIE, "guessed")
        assert (await stranger.get("/assessment/responses")).status_code == 401


async def test_students_see_neither_rubric_nor_reference_answer(client: httpx.AsyncClient) -> None:
    """What helps to score helps to cheat."""
    questions = (await client.get("/api/questions")).json()

    assert len(questions) == 7
    assert not {"rubric", "reference_answer", "dimensions"} & {name for each in questions for name in each}


async def test_only_what_exists_can_be_signed_in_or_broken(client: httpx.AsyncClient) -> None:
    """A student or a process that is not there is not found."""
    assert (await client.post("/demo/sign-in", json={"user_id": 1})).status_code == 404
    assert (await client.post("/demo/processes/postgres/kill")).status_code == 404


def test_a_visitor_is_told_apart_by_a_mark_that_survives_a_restart() -> None:
    """What a page kept for its student under the mark is found again when the site has a new key."""
    from demo.site.visitors import Visitor  # noqa: PLC0415

    visitor = Visitor(None, "token")
    assert Visitors().mark(visitor) == Visitors().mark(visitor)
    assert "token" not in repr(visitor)


def test_a_port_that_is_taken_is_said_in_a_sentence() -> None:
    """At once, before anything is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        finished = subprocess.run(
            [sys.executable, "-m", "demo", "--serve", "--port", str(port)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    assert finished.returncode == 1
    assert f"can't be served on port {port}" in finished.stdout
    assert "Starting PostgreSQL" not in finished.stdout
    assert "Traceback" not in finished.stdout + finished.stderr


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM])
async def test_ctrl_c_stops_everything_in_order(
    servers: GivenServers, tmp_path: Path, stop_signal: signal.Signals
) -> None:
    """Also while somebody listens to a stream; the exit status is 130, and no process is left."""
    site = await asyncio.to_thread(start_site, tmp_path / "log")
    pids = [site.pid_of("worker"), site.pid_of("redis")]
    async with httpx.AsyncClient(base_url=site.url, timeout=30) as client:
        await client.get("/")
        async with client.stream("GET", "/assessment/events") as stream:
            assert stream.status_code == 200
            status = await asyncio.to_thread(stop_site, site, stop_signal)

    assert status == 130, site.output()
    assert "everything that the demo started is gone" in site.output()
    assert "Traceback" not in site.output()

    def gone() -> bool:
        return (
            subprocess.run(
                ["ps", "-p", ",".join(map(str, pids))], capture_output=True, check=False
            ).returncode
            == 1
        )

    await eventually(gone)
