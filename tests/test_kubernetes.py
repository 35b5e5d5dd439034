"""The Kubernetes manifests against Kubernetes' schemas, KEDA's fields, and the code: no cluster is needed for that."""

from __future__ import annotations

import importlib
import json
import math
import re
import shlex
import tomllib
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import pytest
import yaml
from pydantic import BaseModel, SecretStr, ValidationError
from sqlalchemy import text
from sqlalchemy.engine import make_url

from producers.settings import ENV_PREFIX, DatabaseSettings
from storage import create_engine, submit_responses
from storage.dead import dismiss_dead
from storage.errors import AccessDeniedError
from storage.settlements import fail_handoffs, postpone_handoffs
from storage.statistics import handoff_statistics
from storage.workers import ALIVE_SECONDS
from tests.databases import raw_connection, temporary_database, upgrade
from tests.factories import (
    bury,
    change_handoff,
    lease,
    make_overdue,
    publish,
    release,
    submission,
    submit,
)
from tests.keda_objects import CONNECTION, ScaledObject, TriggerAuthentication
from tests.storage.acting import perform
from tests.storage.test_query_plans import nodes
from tests.test_compose import assert_is_command
from worker.heartbeat import LEAVE_SECONDS
from worker.intake import BULK_SHARE
from worker.migrations import MIGRATION_SECONDS
from worker.runtime import CLOSE_SECONDS, LAST_WRITES_SECONDS
from worker.settings import ScoringSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from tests.conftest import GivenServers

ROOT: Final = Path(__file__).parents[1]
FOLDER: Final = ROOT / "deploy" / "kubernetes"
KUSTOMIZATIONS: Final = (FOLDER / "kustomization.yaml", FOLDER / "migrate" / "kustomization.yaml")
SECRETS: Final = FOLDER / "secret.example.yaml"
SETTINGS: Final = FOLDER / "settings.env"
KEDA: Final[dict[str, type[BaseModel]]] = {
    "ScaledObject": ScaledObject,
    "TriggerAuthentication": TriggerAuthentication,
}
# The oldest that has every field in use, and the newest that the schemas are there for.
OLDEST: Final = "1.31"
INDEX: Final = "ix_scoring_handoffs_due"
# The autoscaler does nothing while the measure is off its target by no more than this.
TOLERANCE: Final = 0.1
# A scorer that was cancelled is given this time, see worker.pool.
CANCELLED_SECONDS: Final = 1.0

# Without its comments.
ROLE_SCRIPT: Final = re.sub(r"--.*", "", (FOLDER / "scaler-role.sql").read_text())
# What a session of the scaler's login begins with.
LOGIN_SETTINGS: Final = dict(re.findall(r"ALTER ROLE scoring_scaler SET (\w+) = (.*);", ROLE_SCRIPT))
# Where a name is whatever people like.
ANY_NAME: Final = frozenset({"labels", "matchLabels", "data", "stringData", "requests", "limits"})

Manifest = dict[str, Any]


def read(path: Path) -> list[Manifest]:
    """The objects of a file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def read_settings() -> dict[str, str]:
    lines = (line for line in SETTINGS.read_text().splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", maxsplit=1) for line in lines)


def manifests() -> Iterator[tuple[str, Manifest]]:
    """Every object that is applied, by file and kind; the generated ConfigMap too."""
    for kustomization in KUSTOMIZATIONS:
        [content] = read(kustomization)
        for resource in content["resources"]:
            path = kustomization.parent / resource
            for found in read(path):
                yield f"{path.relative_to(FOLDER)}:{found['kind']}", found
    for found in read(SECRETS):
        yield f"{SECRETS.name}:{found['metadata']['name']}", found
    yield (
        "settings.env:ConfigMap",
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": generator()["name"]},
            "data": read_settings(),
        },
    )


def generator() -> dict[str, Any]:
    [found] = read(KUSTOMIZATIONS[0])[0]["configMapGenerator"]
    return dict(found)


MANIFESTS: Final = dict(manifests())


def the(kind: str) -> Manifest:
    """The only object of its kind."""
    [found] = [manifest for manifest in MANIFESTS.values() if manifest["kind"] == kind]
    return found


def pod(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = the(kind)["spec"]["template"]
    return found


def container(kind: str) -> dict[str, Any]:
    [found] = pod(kind)["spec"]["containers"]
    return dict(found)


def secret(name: str) -> dict[str, str]:
    [found] = [found for found in read(SECRETS) if found["metadata"]["name"] == name]
    return dict(found["stringData"])


def scaled() -> ScaledObject:
    return ScaledObject.model_validate(the("ScaledObject"))


def query() -> str:
    return scaled().spec.triggers[0].metadata.query


def limits() -> list[int]:
    """How far the query counts in the live lane and in the bulk lane."""
    return [int(limit) for limit in re.findall(r"LIMIT (\d+)", query())]


def mebibytes(quantity: str) -> int:
    match = re.fullmatch(r"(\d+)Mi", quantity)
    assert match, quantity
    return int(match[1])


def check(manifest: Manifest, version: str) -> None:
    """Refuse what the API server would refuse, unknown fields too.

    Raises:
        ValidationError: An object of KEDA's is wrong.
        jsonschema.ValidationError: Any other.
    """
    # Not at the top: without the package these tests fail one by one, in CI as elsewhere, and none is skipped.
    validator = importlib.import_module("kubernetes_validate")
    if manifest["kind"] in KEDA:
        made = KEDA[manifest["kind"]].model_validate(manifest)
        if isinstance(made, ScaledObject):
            validator.validate(made.autoscaler(), version, strict=True)
    else:
        validator.validate(manifest, version, strict=True)


@pytest.fixture(params=[OLDEST, "newest"])
def version(request: pytest.FixtureRequest) -> str:
    newest = str(importlib.import_module("kubernetes_validate").latest_version())
    return newest if request.param == "newest" else str(request.param)


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_manifest_matches_its_schema(name: str, version: str) -> None:
    """Fields, types and required parts, of the oldest Kubernetes that is meant and of the newest that is known."""
    check(MANIFESTS[name], version)


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_schemas_are_strict(name: str, version: str) -> None:
    """A field that is misspelt or out of place is refused, at the top and deep inside."""
    refusals: tuple[type[Exception], ...] = (
        ValidationError,
        importlib.import_module("jsonschema").ValidationError,
    )

    def places(value: Any) -> Iterator[dict[str, Any]]:
        if isinstance(value, dict):
            yield value
            for key, inside in value.items():
                if key not in ANY_NAME:
                    yield from places(inside)
        elif isinstance(value, list):
            for inside in value:
                yield from places(inside)

    changed = deepcopy(MANIFESTS[name])
    for place in list(places(changed)):
        place["replcas"] = 3
        with pytest.raises(refusals):
            check(changed, version)
        del place["replcas"]
    check(changed, version)


def test_a_number_where_keda_wants_a_text_is_refused() -> None:
    """Quotes that are forgotten would be noticed by the cluster only."""
    changed = deepcopy(the("ScaledObject"))
    changed["spec"]["triggers"][0]["metadata"]["targetQueryValue"] = 80

    with pytest.raises(ValidationError, match="targetQueryValue"):
        ScaledObject.model_validate(changed)


def test_kustomizations_name_what_exists() -> None:
    """Every manifest is in one of the two, but the example of the Secrets, which must not be applied as it is."""
    named = []
    for path in KUSTOMIZATIONS:
        [content] = read(path)
        assert content.pop("apiVersion") == "kustomize.config.k8s.io/v1beta1"
        assert content.pop("kind") == "Kustomization"
        named += [path, *(path.parent / resource for resource in content.pop("resources"))]
        for generated in content.pop("configMapGenerator", []):
            assert generated.keys() == {"name", "envs"}
            assert all((path.parent / source).is_file() for source in generated["envs"])
        assert content.keys() == {"images"}

    present = {path for path in FOLDER.rglob("*.yaml") if path.name != "secret.yaml"}
    assert sorted([*named, SECRETS]) == sorted(present)
    assert "secret.yaml" in (FOLDER / ".gitignore").read_text().splitlines()


def test_the_image_is_this_version_and_must_be_edited() -> None:
    """Both steps run the same image; its name as it stands is none, so that a forgotten edit is seen at once."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    [workers], [migration] = (read(path)[0]["images"] for path in KUSTOMIZATIONS)

    assert workers == migration
    assert workers["newTag"] == version
    assert workers["newName"] != workers["newName"].lower()
    assert {container(kind)["image"] for kind in ("Deployment", "Job")} == {workers["name"]}


def test_objects_find_each_other() -> None:
    """Names and labels by which one refers to another; no namespace, so that all are in the same one."""
    labels = pod("Deployment")["metadata"]["labels"]
    selectors = [
        the("Deployment")["spec"]["selector"],
        the("PodDisruptionBudget")["spec"]["selector"],
        the("NetworkPolicy")["spec"]["podSelector"],
        *(each["labelSelector"] for each in pod("Deployment")["spec"]["topologySpreadConstraints"]),
    ]
    config_map, worker_secret = container("Deployment")["envFrom"]
    [owner_secret] = container("Job")["envFrom"]
    sources = TriggerAuthentication.model_validate(the("TriggerAuthentication")).spec.secret_target_ref
    spec = scaled().spec

    for selector in selectors:
        assert selector.keys() == {"matchLabels"}
        assert selector["matchLabels"].items() <= labels.items()
    # A migration is no worker: neither counted nor stopped as one, but as shut off as they are.
    migration = pod("Job")["metadata"]["labels"].items()
    assert not selectors[0]["matchLabels"].items() <= migration
    assert selectors[2]["matchLabels"].items() <= migration
    assert config_map == {"configMapRef": {"name": generator()["name"]}}
    assert worker_secret == {"secretRef": {"name": "scoring-worker"}}
    assert owner_secret == {"secretRef": {"name": "scoring-owner"}}
    assert {source.name for source in sources} == {"scoring-scaler"}
    assert secret("scoring-scaler").keys() == {source.key for source in sources} == CONNECTION
    assert spec.triggers[0].authentication_ref.name == the("TriggerAuthentication")["metadata"]["name"]
    assert spec.scale_target_ref.name == the("Deployment")["metadata"]["name"]
    assert all("namespace" not in manifest["metadata"] for manifest in MANIFESTS.values())


def test_every_scoring_command_exists() -> None:
    """In the manifests and in the README beside them."""
    worker = container("Deployment")

    assert worker["command"] == ["scoring", "worker"]
    for words in (
        worker["command"],
        worker["readinessProbe"]["exec"]["command"],
        container("Job")["command"],
    ):
        assert_is_command(words)
    spoken = re.findall(r"(?:`|-- )(scoring [a-z][^`\n]*)", (FOLDER / "README.md").read_text())
    assert spoken
    for words in spoken:
        assert_is_command(shlex.split(words))


def test_every_setting_is_one_and_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the placeholders filled in a worker would start; a misspelt variable would be ignored without a word."""
    given = read_settings() | secret("scoring-worker")
    fields = {f"{ENV_PREFIX}{name.upper()}" for name in ScoringSettings.model_fields}
    for variable, value in given.items():
        monkeypatch.setenv(variable, value.replace("REPLACE", "replaced"))

    assert given.keys() <= fields
    assert len(given) == len(read_settings()) + len(secret("scoring-worker"))
    settings = ScoringSettings.from_environment()
    assert settings.scorer == "llm"
    assert settings.llm_model
    assert settings.llm_api_key is not None
    assert secret("scoring-owner").keys() == {"SCORING_DATABASE_URL"}
    assert DatabaseSettings.from_environment().database_url == settings.database_url


def test_secrets_are_placeholders_and_stand_in_secrets_only() -> None:
    """What is secret is asked for in the example, and nothing that is secret has a place anywhere else."""
    confidential = {
        f"{ENV_PREFIX}{name.upper()}"
        for name, field in ScoringSettings.model_fields.items()
        if SecretStr in {field.annotation, *getattr(field.annotation, "__args__", ())}
    }
    harmless = {"port": "5432", "userName": "scoring_scaler", "sslmode": "require"}

    assert confidential == {"SCORING_DATABASE_URL", "SCORING_REDIS_URL", "SCORING_LLM_API_KEY"}
    assert not confidential & read_settings().keys()
    for name in ("scoring-worker", "scoring-owner", "scoring-scaler"):
        for key, value in secret(name).items():
            assert "REPLACE" in value or harmless[key] == value, key
    for kind in ("Deployment", "Job"):
        assert "env" not in container(kind)


def test_a_worker_may_stop_in_its_own_time() -> None:
    """Nobody kills it before it had the time that the code takes: for its last leases, its answers, its good-byes."""
    grace_seconds = float(read_settings()["SCORING_GRACE_SECONDS"])
    timeout_seconds = ScoringSettings.model_fields["database_timeout_seconds"].default
    # A lease that is being taken is one statement, and another one for its questions.
    before = 2 * timeout_seconds
    after = CANCELLED_SECONDS + LAST_WRITES_SECONDS + LEAVE_SECONDS + 2 * CLOSE_SECONDS

    assert (before, after) == (20, 17), "as it is said in deployment.yaml"
    given = pod("Deployment")["spec"]["terminationGracePeriodSeconds"]
    # Some seconds more, for what has no constant: ending tasks that are slow to end.
    assert given >= before + grace_seconds + after + 10
    assert the("Job")["spec"]["activeDeadlineSeconds"] > MIGRATION_SECONDS


def test_no_probe_restarts_a_worker() -> None:
    """`scoring health` fails with PostgreSQL away, and then workers keep finished scores: none may be killed for it."""
    worker = container("Deployment")
    probe = worker["readinessProbe"]

    assert not {"livenessProbe", "startupProbe", "lifecycle"} & worker.keys()
    assert ScoringSettings.model_fields["database_timeout_seconds"].default < probe["timeoutSeconds"]
    assert probe["timeoutSeconds"] < probe["periodSeconds"]
    # A container that was started anew in its pod is taken for the one before it for so long.
    assert the("Deployment")["spec"]["minReadySeconds"] > ALIVE_SECONDS


def test_workers_are_never_fewer_than_they_should_be() -> None:
    """The scaler alone decides how many; rollouts add before they take away; drains take one at a time."""
    spec = the("Deployment")["spec"]

    assert "replicas" not in spec
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert spec["strategy"]["rollingUpdate"]["maxSurge"] not in {0, "0%"}
    assert the("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert the("PodDisruptionBudget")["spec"]["unhealthyPodEvictionPolicy"] == "IfHealthyBudget"


@pytest.mark.parametrize("kind", ["Deployment", "Job"])
def test_pods_are_restricted(kind: str) -> None:
    """As the strictest of Kubernetes' Pod Security Standards asks, and as the image's own user."""
    spec, only = pod(kind)["spec"], container(kind)
    [user] = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    [workdir] = re.findall(r"^WORKDIR (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[-1:]

    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": int(user[0]),
        "runAsGroup": int(user[1]),
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    # Nothing but a scratch folder, where the image works.
    assert [mount["mountPath"] for mount in only["volumeMounts"]] == [workdir]
    assert [volume.keys() for volume in spec["volumes"]] == [{"name", "emptyDir"}]
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & spec.keys()
    assert "ports" not in only
    # No token of the cluster, and no variables of foreign services that look like ours.
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False


@pytest.mark.parametrize("kind", ["Deployment", "Job"])
def test_resources_are_asked_for(kind: str) -> None:
    """Memory is limited, processor time is not: a throttled event loop looks like one that hangs."""
    resources = container(kind)["resources"]

    assert resources["requests"].keys() == {"cpu", "memory"}
    assert resources["limits"].keys() == {"memory"}
    assert mebibytes(resources["requests"]["memory"]) <= mebibytes(resources["limits"]["memory"])


def test_nobody_reaches_a_worker_and_it_reaches_its_servers() -> None:
    """The policy lets out what the example's URLs need, and lets in nothing."""
    spec = the("NetworkPolicy")["spec"]
    allowed = {port["port"] for rule in spec["egress"] for port in rule["ports"]}
    worker = secret("scoring-worker")
    needed = {make_url(worker[f"SCORING_{name}_URL"]).port for name in ("DATABASE", "REDIS")}

    assert spec["ingress"] == []
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    assert allowed == needed | {53, 443}


def test_the_scalers_numbers_follow_from_the_settings() -> None:
    """Target, limits and time window fit SCORING_SLOTS, SCORING_LEASE_SECONDS and the most workers there may be."""
    settings, spec = read_settings(), scaled().spec
    slots = int(settings["SCORING_SLOTS"])
    target = int(spec.triggers[0].metadata.target_query_value)
    live, bulk = limits()

    assert target == int(slots * BULK_SHARE)
    assert live == spec.max_replica_count * slots
    # With one worker too few, the largest count is far enough off its target for the autoscaler to act.
    for limit, workers in ((live, spec.max_replica_count), (bulk, math.ceil(bulk / target))):
        assert limit / (target * (workers - 1)) > 1 + TOLERANCE
    assert math.ceil(bulk / target) == 4, "as it is said in scaled-object.yaml"
    assert bulk < live
    lease_seconds = int(settings["SCORING_LEASE_SECONDS"])
    assert re.findall(r"interval '(\d+) seconds'", query()) == [str(lease_seconds)] * 2
    # Without a worker nobody applies claims; see scaled-object.yaml.
    assert spec.min_replica_count >= 1


def test_the_defaults_that_are_repeated_are_the_defaults() -> None:
    """Where settings.env says that it repeats the code, it does."""
    _, _, repeated = SETTINGS.read_text().partition("These three are the defaults.")
    lines = re.findall(r"^SCORING_(\w+)=(.*)$", repeated, re.MULTILINE)

    assert len(lines) == 3
    for name, value in lines:
        assert float(value) == ScoringSettings.model_fields[name.lower()].default


def test_what_the_readme_names_exists() -> None:
    """Files and folders of this repository."""
    readme = (FOLDER / "README.md").read_text()
    paths = set(re.findall(r"deploy/kubernetes[\w./-]*", readme)) - {"deploy/kubernetes/secret.yaml"}
    links = [link for link in re.findall(r"\]\(([^)]+)\)", readme) if "://" not in link]

    assert paths
    assert links
    assert all((ROOT / path).exists() for path in paths)
    assert all((FOLDER / link).exists() for link in links)


def test_the_readmes_figures_are_right() -> None:
    """The bound of a count, and the connections of a fleet at its largest, in the middle of a rollout."""
    readme = " ".join((FOLDER / "README.md").read_text().split())
    most, surge = (
        scaled().spec.max_replica_count,
        the("Deployment")["spec"]["strategy"]["rollingUpdate"]["maxSurge"],
    )
    workers = most + math.ceil(most * int(surge.rstrip("%")) / 100)
    connections = workers * ScoringSettings.model_fields["database_pool_size"].default

    assert f"{sum(limits()):,} index entries at most" in readme
    assert f"three more during a rollout, {connections}" in readme
    assert workers - most == 3


# ---- The query, on a really migrated PostgreSQL ----


async def count(conn: AsyncConnection) -> int:
    """What KEDA reads: one row with one whole number."""
    [[number]] = (await conn.exec_driver_sql(query())).all()
    assert type(number) is int
    return number


async def test_an_empty_table_needs_no_worker(conn: AsyncConnection) -> None:
    """Nothing waits: the least number of workers stays."""
    assert await count(conn) == 0


async def test_what_waits_and_what_is_leased_is_counted(conn: AsyncConnection) -> None:
    """Both lanes; neither postponed nor failed nor dead nor dismissed nor unpublished; a lease that ran out waits."""
    await publish(conn)
    ids = [row["response_id"] for row in await submit_responses(conn, [submission()] * 20)]
    for response_id in ids[0:4]:
        await change_handoff(conn, response_id, lane="bulk")
    await lease(conn, ids[0], lease_seconds=30)
    await lease(conn, *ids[4:7], lease_seconds=30)
    await make_overdue(conn, ids[6])
    postponed = await lease(conn, *ids[7:10])
    for held, delay_seconds in zip(postponed, (1, 20, 500), strict=True):
        await postpone_handoffs(conn, [release(held, delay_seconds=delay_seconds, reason="503")])
    failed = await lease(conn, *ids[10:12])
    await fail_handoffs(conn, [release(held, delay_seconds=5, reason="nonsense") for held in failed])
    for response_id in ids[12:15]:
        await bury(conn, response_id)
    await dismiss_dead(conn, response_ids=ids[12:13], dismissed_by="ops")
    await submit(conn, question_id="late")

    # Waiting: three of bulk, one whose lease ran out, five that nobody touched. Leased: one of bulk, two of live.
    assert await count(conn) == 3 + 1 + 5 + 1 + 2
    status = await handoff_statistics(conn)
    assert await count(conn) == status["waiting_live"] + status["waiting_bulk"] + status["leased"]


MANY: Final = """
    INSERT INTO users (user_id) SELECT 1;
    INSERT INTO assessment_questions
        (question_digest, module_slug, question_id, question_text, rubric, scale_min, scale_max)
        VALUES ('digest', 'm', 'q', 't', 'r', 1, 5);
    INSERT INTO assessment_responses (user_id, module_slug, question_id, answer_text, question_digest)
        SELECT 1, 'm', 'q', 'An answer of some length.', 'digest' FROM generate_series(1, 40000);
    -- Postponed first, then what waits, then what is leased: whoever read the table from its beginning would read all.
    INSERT INTO scoring_handoffs (response_id, question_digest, lane, due_at, lease_token, leased_at, last_error)
        SELECT response_id, 'digest', CASE WHEN response_id % 5 = 0 THEN 'bulk' ELSE 'live' END,
            statement_timestamp() + CASE
                WHEN response_id <= 20000 THEN interval '1 hour'
                WHEN response_id <= 39000 THEN interval '-1 hour'
                ELSE interval '20 seconds'
            END,
            CASE WHEN response_id > 39000 THEN gen_random_uuid() END,
            CASE WHEN response_id > 39000 THEN statement_timestamp() END,
            CASE WHEN response_id <= 20000 THEN '503' END
        FROM assessment_responses ORDER BY response_id;
"""


@pytest.fixture(scope="module")
async def large(servers: GivenServers) -> AsyncIterator[AsyncEngine]:
    """A database of its own with tens of thousands of handoffs."""
    async with temporary_database(servers.database_url) as url:
        await upgrade(url)
        async with raw_connection(url) as connection:
            await connection.execute(MANY)
        engine = create_engine(url)
        yield engine
        await engine.dispose()


@pytest.fixture
async def scaler(large: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection to it with the settings that the scaler's login has; whatever the test does is undone."""
    async with large.connect() as conn, conn.begin() as undone:
        for name, value in LOGIN_SETTINGS.items():
            await conn.exec_driver_sql(f"SET LOCAL {name} = {value}")
        yield conn
        await undone.rollback()


async def explain(conn: AsyncConnection, statement: str) -> list[int]:
    """Run it, and say how many rows each read of the index brought, those that were dropped then included."""
    driver: Any = (await conn.get_raw_connection()).driver_connection
    plan = list(nodes(await driver.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}")))
    reads = [node for node in plan if "Index Name" in node]
    kinds = {node["Node Type"] for node in plan}

    assert kinds <= {"Result", "Aggregate", "Limit", "Index Scan"}, json.dumps(plan[0], indent=1)
    assert {node["Index Name"] for node in reads} == {INDEX}
    return [int(node["Actual Rows"]) + int(node.get("Rows Removed by Filter", 0)) for node in reads]


async def nothing_waits(conn: AsyncConnection) -> None:
    """Postpone what waits; a thousand leases are left, a fifth of them of bulk."""
    await conn.execute(
        text("UPDATE scoring_handoffs SET due_at = due_at + interval '2 hours' WHERE lease_token IS NULL")
    )
    await conn.execute(text("ANALYZE scoring_handoffs"))


@pytest.mark.parametrize("known", [False, True], ids=["without statistics", "with statistics"])
async def test_counting_a_backlog_is_bounded(scaler: AsyncConnection, *, known: bool) -> None:
    """It reads the index up to its limits, and no row beyond: a backlog of a million costs no more."""
    if known:
        await scaler.execute(text("ANALYZE scoring_handoffs"))

    assert await count(scaler) == sum(limits())
    assert await explain(scaler, query()) == limits()


async def test_what_is_postponed_costs_nothing(scaler: AsyncConnection) -> None:
    """With nothing waiting, the leased ones are counted, and what is due after a lease time is not even read."""
    await nothing_waits(scaler)

    assert await count(scaler) == 1000
    assert await explain(scaler, query()) == [800, 200]


async def test_a_plan_that_was_kept_is_bounded_too(scaler: AsyncConnection) -> None:
    """KEDA's driver prepares the query once: planned while nothing waited, it stops at its limits all the same."""
    driver: Any = (await scaler.get_raw_connection()).driver_connection
    await nothing_waits(scaler)
    await driver.execute(f"PREPARE kept AS {query()}")

    assert await explain(scaler, "EXECUTE kept") == [800, 200]
    await scaler.execute(
        text("UPDATE scoring_handoffs SET due_at = due_at - interval '3 hours' WHERE lease_token IS NULL")
    )
    assert await explain(scaler, "EXECUTE kept") == limits()
    await driver.execute("DEALLOCATE kept")


async def test_the_scalers_login_counts_and_can_do_nothing_else(conn: AsyncConnection) -> None:
    """What scaler-role.sql grants is enough for the query, and not for an answer, a score or any change."""
    login = secret("scoring-scaler")["userName"]
    role = f"scoring_test_scaler_{uuid4().hex[:8]}"
    assert f"CREATE ROLE {login} LOGIN" in ROLE_SCRIPT
    # Roles belong to the whole server: under a name that nobody else has, and undone with the transaction.
    for statement in ROLE_SCRIPT.replace(login, role).split(";"):
        if statement.strip():
            await conn.exec_driver_sql(statement)
    await publish(conn)
    await submit(conn)

    await conn.execute(text(f"SET LOCAL SESSION AUTHORIZATION {role}"))
    assert await count(conn) == 1
    for refused in (
        "SELECT answer_text FROM assessment_responses",
        "SELECT score_data FROM assessment_scores",
        "SELECT rubric FROM assessment_questions",
        "SELECT anonymous_token FROM assessment_claims",
        "SELECT response_id FROM scoring_handoffs",
        "SELECT trace_context FROM scoring_handoffs",
        "SELECT last_error FROM scoring_handoffs",
        "UPDATE scoring_handoffs SET due_at = now()",
        "DELETE FROM scoring_handoffs",
        "INSERT INTO scoring_handoffs (response_id) VALUES (1)",
        "SELECT 1 FROM scoring_handoffs FOR UPDATE",
        "SELECT user_id FROM users",
    ):
        with pytest.raises(AccessDeniedError):
            async with conn.begin_nested():
                await perform(conn, refused)
    login_row = await conn.execute(
        text("SELECT rolcanlogin, rolsuper, rolcreaterole, rolconfig FROM pg_roles WHERE rolname = :role"),
        {"role": role},
    )
    can_login, *privileged, config = login_row.one()
    assert can_login
    assert not any(privileged)
    assert dict(option.split("=") for option in config) == {
        name: value.strip("'") for name, value in LOGIN_SETTINGS.items()
    }
    assert LOGIN_SETTINGS["default_transaction_read_only"] == "on"
