"""The container files against the code: no Docker engine is needed to see that they name what exists.

Run as a program (``python -m tests.test_compose``) it writes the block of settings in ``.env.example`` anew.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic_core import PydanticUndefined

from producers.settings import ENV_PREFIX
from tests.kubernetes.manifests import CANCELLED_SECONDS
from worker.heartbeat import LEAVE_SECONDS
from worker.runtime import CLOSE_SECONDS, LAST_WRITES_SECONDS
from worker.settings import ScoringSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT: Final = Path(__file__).parents[1]
ENV_EXAMPLE: Final = ROOT / ".env.example"
LAST_LINE_BEFORE_SETTINGS: Final = "# This block is written by: python -m tests.test_compose\n"
LONG_LIVED: Final = ("postgres", "redis", "worker")
OWN: Final = ("migrate", "worker")
SHOWN: Final = {
    "database_url": "postgresql://scoring:PASSWORD@127.0.0.1:5432/scoring",
    "redis_url": "redis://:PASSWORD@127.0.0.1:6379/0",
}


def settings_block() -> str:
    """Every setting as a line of ``.env.example``, below what it means and which values it takes."""
    paragraphs = []
    for name, field in ScoringSettings.model_fields.items():
        bounds = [
            f"{word} {getattr(rule, attribute):,}"
            for rule in field.metadata
            for attribute, word in (
                ("ge", "at least"),
                ("gt", "more than"),
                ("le", "at most"),
                ("lt", "less than"),
            )
            if hasattr(rule, attribute)
        ]
        description = field.description or ""
        if field.default is PydanticUndefined:
            value = SHOWN[name]
            description += "; required"
        elif field.default is None or field.default == "":
            value = ""
            description += "; no default"
        else:
            value = str(field.default).lower() if isinstance(field.default, bool) else f"{field.default}"
            value = value.removesuffix(".0")
        allowed = f" ({', '.join(bounds)})" if bounds else ""
        text = f"# {description}{allowed}"
        paragraphs.append(f"{text}\n#{ENV_PREFIX}{name.upper()}={value}\n")
    return "\n" + "\n".join(paragraphs)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return content


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose["services"]
    return found


@pytest.fixture(scope="module")
def dockerfile() -> list[list[str]]:
    """The instructions, each as its words; comments are left out and continued lines are joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [line.split() for line in lines if line.strip()]


def final_stage(dockerfile: list[list[str]]) -> list[list[str]]:
    start = max(number for number, words in enumerate(dockerfile) if words[0] == "FROM")
    return dockerfile[start:]


def environment(service: Mapping[str, Any]) -> dict[str, str | None]:
    given: dict[str, str | None] = service["environment"]
    return given


def seconds(duration: str) -> int:
    match = re.fullmatch(r"(?:\$\{\w+:-)?(\d+)(s|m)\}?", duration)
    assert match, duration
    return int(match[1]) * (60 if match[2] == "m" else 1)


def needed_by(distribution: str) -> set[str]:
    """The distribution and all that it needs here, however indirectly."""
    found: set[str] = set()
    waiting = [distribution]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            requirements = [Requirement(line) for line in importlib.metadata.requires(name) or []]
            waiting += [
                canonicalize_name(needed.name)
                for needed in requirements
                if needed.marker is None or needed.marker.evaluate({"extra": ""})
            ]
    return found


def commands_of_the_app() -> Any:
    return typer.main.get_command(importlib.import_module("worker.cli").app)


def assert_is_command(words: list[str]) -> None:
    """Follow the words of a ``scoring`` command through the Typer app."""
    assert words[0] == "scoring"
    command = commands_of_the_app()
    for word in words[1:]:
        if not hasattr(command, "commands"):
            break  # what follows are arguments
        assert word in command.commands, f"{shlex.join(words)}: no such command"
        command = command.commands[word]
    assert not hasattr(command, "commands"), f"{shlex.join(words)}: a group, not a command"


def test_every_scoring_command_exists(
    services: dict[str, dict[str, Any]], dockerfile: list[list[str]]
) -> None:
    """Commands, health checks, the image's default and those in the comments are commands of the Typer app."""
    comments = re.findall(
        r"^#.*\b(scoring [a-z].*)$", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE
    )
    (image_command,) = (" ".join(words[1:]) for words in dockerfile if words[0] == "CMD")

    assert len(comments) == 2
    for comment in comments:
        assert_is_command(shlex.split(comment))
    assert_is_command(yaml.safe_load(image_command))
    for name in OWN:
        assert_is_command(services[name]["command"])
    kind, *health = services["worker"]["healthcheck"]["test"]
    assert kind == "CMD"
    assert_is_command(health)


def test_every_setting_is_passed_on_and_is_one(services: dict[str, dict[str, Any]]) -> None:
    """A variable in .env that no container sees, or a misspelt one, would be ignored without a word."""
    fields = {f"{ENV_PREFIX}{name.upper()}" for name in ScoringSettings.model_fields}
    for name in OWN:
        assert environment(services[name]).keys() == fields, name
        given = {variable for variable, value in environment(services[name]).items() if value is not None}
        assert given == {"SCORING_DATABASE_URL", "SCORING_REDIS_URL"}, "defaults stand in one place, the code"


def test_urls_lead_to_the_services(
    services: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With passwords filled in, the URLs are valid settings and name the service, the user and the database."""
    for variable, value in environment(services["worker"]).items():
        monkeypatch.delenv(variable, raising=False)
        if value is not None:
            monkeypatch.setenv(variable, re.sub(r"\$\{\w+:\?[^}]*\}", "secret", value))
    database = environment(services["postgres"])

    settings = ScoringSettings.from_environment()

    assert settings.database_url.get_secret_value() == (
        f"postgresql://{database['POSTGRES_USER']}:secret@postgres:5432/{database['POSTGRES_DB']}"
    )
    assert settings.redis_url.get_secret_value() == "redis://:secret@redis:6379/0"


def test_the_example_lists_every_setting() -> None:
    """Name, meaning, unit, bounds and default of each; ``python -m tests.test_compose`` writes them anew."""
    _, _, block = ENV_EXAMPLE.read_text().partition(LAST_LINE_BEFORE_SETTINGS)

    assert block == settings_block()


def test_every_reference_is_in_the_example() -> None:
    """Whatever docker-compose.yml takes from .env can be found in .env.example, with the same default."""
    references = re.findall(r"\$\{(\w+)(?::([-?])([^}]*))?\}", (ROOT / "docker-compose.yml").read_text())
    example = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", ENV_EXAMPLE.read_text(), re.MULTILINE))

    assert references
    for variable, operator, text in references:
        assert variable in example
        if operator == "?":
            assert text == f"set {variable} in .env"
            assert example[variable] == "", "a secret has no default"
        else:
            assert (operator, text) == ("-", example[variable])


def test_secrets_come_from_the_environment(services: dict[str, dict[str, Any]]) -> None:
    """No password stands in the file, and Compose refuses to start without one."""
    for service in services.values():
        for variable, value in environment(service).items():
            if variable.endswith(("_PASSWORD", "_AUTH", "_URL")) and value is not None:
                assert re.search(r"\$\{\w+_PASSWORD:\?", value), variable


def test_dependencies_exist_with_conditions_that_can_come_true(services: dict[str, dict[str, Any]]) -> None:
    """Workers start after the migration; what must be healthy has a check, what must complete runs once."""
    conditions = {
        name: {target: how["condition"] for target, how in service.get("depends_on", {}).items()}
        for name, service in services.items()
    }

    assert conditions["migrate"] == {"postgres": "service_healthy"}
    assert conditions["worker"] == {
        "migrate": "service_completed_successfully",
        "postgres": "service_healthy",
        "redis": "service_healthy",
    }
    for targets in conditions.values():
        for target, condition in targets.items():
            if condition == "service_healthy":
                assert "healthcheck" in services[target]
            else:
                assert services[target]["restart"] == "no"


def test_long_lived_services_are_watched_and_restarted(services: dict[str, dict[str, Any]]) -> None:
    """Each has a health check whose time-out fits its interval; nothing else runs for long."""
    assert services.keys() == {*LONG_LIVED, "migrate"}
    for name in LONG_LIVED:
        check = services[name]["healthcheck"]
        assert seconds(check["timeout"]) <= seconds(check["interval"])
        assert services[name]["restart"] == "unless-stopped"


def test_workers_scale_and_stop_in_their_own_time(services: dict[str, dict[str, Any]]) -> None:
    """No name and no port stands in the way of a second worker; none is killed while it still has grace time."""
    worker = services["worker"]
    fields = ScoringSettings.model_fields

    assert not {"container_name", "ports", "hostname"} & worker.keys()
    assert worker["init"] is True
    # A lease that is being taken is one statement, and another one for its questions.
    before = 2 * fields["database_timeout_seconds"].default
    after = CANCELLED_SECONDS + LAST_WRITES_SECONDS + LEAVE_SECONDS + 2 * CLOSE_SECONDS
    assert seconds(worker["stop_grace_period"]) > before + fields["grace_seconds"].default + after + 10


def test_ports_are_published_on_loopback_only(services: dict[str, dict[str, Any]]) -> None:
    """Docker's published ports go around a host's firewall."""
    ports = [port for service in services.values() for port in service.get("ports", [])]

    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_servers_keep_what_they_hold(compose: dict[str, Any], services: dict[str, dict[str, Any]]) -> None:
    """PostgreSQL 18 keeps its data below /var/lib/postgresql; Redis appends to a file and evicts nothing."""
    (redis_config,) = services["redis"]["configs"]
    directives = dict(line.split(maxsplit=1) for line in compose["configs"]["redis"]["content"].splitlines())

    assert services["postgres"]["image"].partition(":")[2].startswith("18")
    assert services["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]
    assert services["redis"]["volumes"] == ["redis:/data"]
    assert {"postgres", "redis"} == compose["volumes"].keys()
    assert redis_config["target"] in services["redis"]["command"]
    assert directives["appendonly"] == "yes"
    assert directives["maxmemory-policy"] == "noeviction"
    assert directives["requirepass"].startswith("${REDIS_PASSWORD:?")


def test_what_the_image_copies_exists_and_is_sent(dockerfile: list[list[str]]) -> None:
    """Every source of a COPY is in the repository and let through by .dockerignore; every stage it names exists."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    stages = {words[words.index("AS") + 1] for words in dockerfile if words[0] == "FROM" and "AS" in words}
    copies = [words[1:] for words in dockerfile if words[0] == "COPY"]
    sources = [source for copy in copies if not copy[0].startswith("--from=") for source in copy[:-1]]

    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) or source.startswith(f"{pattern}/") for pattern in allowed), (
            source
        )
    assert {copy[0].removeprefix("--from=") for copy in copies if copy[0].startswith("--from=")} <= stages
    assert all((ROOT / pattern).exists() for pattern in allowed)


def test_the_image_ships_every_package_of_the_wheel(dockerfile: list[list[str]]) -> None:
    """What pyproject.toml puts into the wheel is there when the wheel is built."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = {source for words in dockerfile if words[0] == "COPY" for source in words[1:-1]}

    assert {*wheel["packages"], *wheel["force-include"]} <= copied
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= copied


def test_the_image_installs_from_the_lock(dockerfile: list[list[str]]) -> None:
    """Dependencies come with hashes from the worker's lock, the project comes without any."""
    runs = [" ".join(words) for words in dockerfile if words[0] == "RUN"]
    installs = [run for run in runs if " install " in run]

    assert [re.findall(r"--requirement (\S+)", run) for run in installs] == [
        ["requirements/worker.lock"],
        ["requirements/build.lock"],
        [],
    ]
    assert all("--require-hashes" in run for run in installs[:2])
    assert any("install --no-deps dist/*.whl" in run for run in runs)


def test_the_locks_serve_the_image(dockerfile: list[list[str]]) -> None:
    """Pinned with hashes, no addresses; the worker's extra and the build backend with its needs are locked."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (backend,) = (requirement.partition(">")[0] for requirement in project["build-system"]["requires"])
    worker_lock = (ROOT / "requirements" / "worker.lock").read_text()
    dev_lock = (ROOT / "requirements" / "dev.lock").read_text()

    for lock in (worker_lock, dev_lock):
        requirements = re.findall(r"^([A-Za-z0-9].*?)\s*\\?$", lock, re.MULTILINE)
        assert requirements
        assert all("==" in requirement for requirement in requirements)
        assert lock.count("--hash=sha256:") >= len(requirements)
        assert "://" not in lock
    (kept,) = (word for words in dockerfile for word in words if word.startswith("/^("))
    build_names = kept.removeprefix("/^(").removesuffix(")==/").split("|")
    assert set(build_names) == needed_by(backend)
    for name in build_names:
        assert re.search(rf"^{name}==", dev_lock, re.MULTILINE), name
    for extra in project["project"]["optional-dependencies"]["worker"]:
        name = re.split(r"[\[<>=]", extra)[0]
        assert re.search(rf"^{re.escape(name)}(\[[\w,-]+\])?==", worker_lock, re.MULTILINE | re.IGNORECASE), (
            name
        )


def test_the_final_stage_is_unprivileged_and_has_no_build_tools(dockerfile: list[list[str]]) -> None:
    """It starts from a slim image, removes pip, installs nothing, and runs as a user that is not root."""
    stage = final_stage(dockerfile)
    users = [words[1] for words in stage if words[0] == "USER"]
    runs = " ".join(" ".join(words) for words in stage if words[0] == "RUN")

    assert stage[0][1].endswith("-slim")
    assert len(users) == 1
    assert users[0].partition(":")[0] not in {"root", "0"}
    assert f"--uid {users[0].partition(':')[0]}" in runs
    assert "pip uninstall" in runs
    assert "install " not in runs.replace("uninstall ", "")
    assert all(words[1].startswith("--from=") for words in stage if words[0] == "COPY")


if __name__ == "__main__":
    head, separator, _ = ENV_EXAMPLE.read_text().partition(LAST_LINE_BEFORE_SETTINGS)
    ENV_EXAMPLE.write_text(head + separator + settings_block())
