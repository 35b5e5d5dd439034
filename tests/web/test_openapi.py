"""What client generators and their users read, and whether it is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import unicodedata
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from jsonschema_rs import validator_for

from demo.servers import free_port
from producers.web.shapes import INVISIBLE, VISIBLE_PATTERN
from storage.validation import _is_visible
from tests.databases import ROOT
from tests.web.factories import PROBLEM
from tests.web.host import host_app, host_router

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OPERATIONS = {
    "submit_response",
    "list_responses",
    "get_response",
    "list_question_responses",
    "request_claim",
    "save_draft",
    "get_draft",
    "discard_draft",
    "follow_responses",
}
STREAM = "text/event-stream"
# Requests of each operation and phase: half a minute, and the same ones every time.
EXAMPLES = 15


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return host_app(producer=object, engine=object).openapi()


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in document["paths"].values():
        yield from path.values()


def test_operations_have_names_for_clients(document: dict[str, Any]) -> None:
    """A generator makes methods of them: short, and not of our paths."""
    assert {operation["operationId"] for operation in operations(document)} == OPERATIONS


def test_every_route_says_what_it_takes_and_gives(document: dict[str, Any]) -> None:
    """With a sentence and an example for each reply and each body, and the right media type for each error."""
    schemas = document["components"]["schemas"]

    def has_example(content: dict[str, Any]) -> bool:
        schema = content.get("schema", {})
        named = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        return bool(content.get("examples") or named.get("examples"))

    for operation in operations(document):
        assert operation["summary"]
        assert operation["description"]
        if "requestBody" in operation:
            assert set(operation["requestBody"]["content"]) == {"application/json"}
            assert has_example(operation["requestBody"]["content"]["application/json"])
        assert {"401", "422", "503"} <= set(operation["responses"])
        for status, reply in operation["responses"].items():
            assert reply["description"]
            found = STREAM if operation["operationId"] == "follow_responses" else "application/json"
            kind = PROBLEM if status >= "4" else found
            assert set(reply.get("content", {})) == (set() if status == "204" else {kind})
            assert all(has_example(content) for content in reply.get("content", {}).values())
        assert "Retry-After" in operation["responses"]["503"]["headers"]
    assert not any("HTTPValidationError" in name for name in schemas)


def test_every_example_is_valid(document: dict[str, Any]) -> None:
    """By the schema beside which it stands."""
    schemas = document["components"]["schemas"]

    def check(schema: dict[str, Any], example: Any) -> None:
        validator_for({**schema, "components": {"schemas": schemas}}).validate(example)

    checked = 0
    for operation in operations(document):
        for reply in operation["responses"].values():
            for content in reply.get("content", {}).values():
                for example in content.get("examples", {}).values():
                    check(content.get("schema", {"type": "string"}), example["value"])
                    checked += 1
    for schema in schemas.values():
        for example in schema.get("examples", []):
            check(schema, example)
            checked += 1
    assert checked > 40


def test_the_patterns_say_what_is_refused() -> None:
    """Of every character: what the schema calls visible, storage does, too."""
    visible = re.compile(f"[^{INVISIBLE}]")
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        # Unassigned ones may be format characters in a later edition of Unicode.
        if unicodedata.category(character) not in {"Cs", "Cn"}:
            assert bool(visible.match(character)) == _is_visible(character), hex(code)
    assert re.search(VISIBLE_PATTERN, " a\u200b")
    assert not re.search(VISIBLE_PATTERN, "a\x00")


def test_a_router_in_several_places() -> None:
    """A host with two audiences makes two; nothing is shared between them, and no operation has the id of another."""
    app = FastAPI()
    app.include_router(host_router(producer=object, engine=object), prefix="/one")
    teachers = host_router(producer=object, engine=object, max_answer_chars=10, operation_prefix="teachers_")
    app.include_router(teachers, prefix="/two")

    document = app.openapi()  # a warning, as of an id that is there twice, is an error

    assert {path.split("/")[1] for path in document["paths"]} == {"one", "two"}
    ids = [operation["operationId"] for operation in operations(document)]
    assert sorted(ids) == sorted([*OPERATIONS, *(f"teachers_{name}" for name in OPERATIONS)])


@pytest.mark.commits
@pytest.mark.processes
def test_schemathesis_finds_nothing(
    database_url: str, redis_url: str, measured: Callable[[str], None]
) -> None:
    """Valid, invalid and chained requests, made from the document, on a real server: each reply is as documented."""
    port = free_port()
    ours = {"SCORING_DATABASE_URL": database_url, "SCORING_REDIS_URL": redis_url}
    environment = (
        os.environ | ours | {"SCHEMATHESIS_HOOKS": "tests.web.schemathesis_hooks", "PYTHONPATH": str(ROOT)}
    )
    served = [sys.executable, "-m", "tests.web.serving", str(port)]
    run = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{port}/openapi.json"),
        *("--wait-for-schema", "30", "--header", "x-user: 1", "--header", "x-held: held"),
        *("--checks", "all", "--max-examples", str(EXAMPLES), "--generation-deterministic"),
        *("--continue-on-failure", "--no-color"),
    ]
    with subprocess.Popen(
        served, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as server:
        try:
            done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        finally:
            server.terminate()
        log, _ = server.communicate()

    assert done.returncode == 0, done.stdout + done.stderr
    assert b"Traceback" not in log, log.decode()
    [cases] = re.findall(r"(\d+) generated", done.stdout)
    assert f"Tested: {len(OPERATIONS)}" in done.stdout
    assert int(cases) > 300
    measured(f"schemathesis: {len(OPERATIONS)} operations, {cases} requests, every check, nothing found")
