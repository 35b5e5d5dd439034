"""The Kubernetes manifests against the schemas and the code: no cluster is needed for that."""

from __future__ import annotations

import importlib
import math
import re
import shlex
import tomllib
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr, ValidationError
from sqlalchemy.engine import make_url

from producers.settings import ENV_PREFIX, DatabaseSettings
from tests.kubernetes.keda_objects import CONNECTION, ScaledObject, TriggerAuthentication
from tests.kubernetes.manifests import (
    ANY_NAME,
    CANCELLED_SECONDS,
    FOLDER,
    KUSTOMIZATIONS,
    MANIFESTS,
    OLDEST,
    ROOT,
    SECRETS,
    SETTINGS,
    TOLERANCE,
    check,
    container,
    generator,
    limits,
    mebibytes,
    pod,
    query,
    read,
    read_settings,
    scaled,
    secret,
    the,
)
from tests.test_compose import assert_is_command
from worker.heartbeat import LEAVE_SECONDS
from worker.http.app import PROBES
from worker.http.port import CONNECTIONS, LONGEST_STOP_SECONDS
from worker.http.probes import CHECK_SECONDS, HANGS_SECONDS
from worker.http.server import is_loopback
from worker.intake import BULK_SHARE
from worker.migrations import MIGRATION_SECONDS
from worker.runtime import CLOSE_SECONDS, LAST_WRITES_SECONDS
from worker.settings import ScoringSettings

if TYPE_CHECKING:
    from collections.abc import Iterator


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
    for words in (worker["command"], container("Job")["command"]):
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
    after = CANCELLED_SECONDS + LAST_WRITES_SECONDS + LEAVE_SECONDS + 2 * CLOSE_SECONDS + LONGEST_STOP_SECONDS

    assert (before, after) == (20, 21), "as it is said in deployment.yaml"
    given = pod("Deployment")["spec"]["terminationGracePeriodSeconds"]
    # Some seconds more, for what has no constant: ending tasks that are slow to end.
    assert given >= before + grace_seconds + after + 10
    assert the("Job")["spec"]["activeDeadlineSeconds"] > MIGRATION_SECONDS


def test_only_a_worker_that_hangs_is_started_anew() -> None:
    """Liveness asks for the event loop alone, and patiently; PostgreSQL and Redis only make a worker unready."""
    worker = container("Deployment")
    liveness, readiness = worker["livenessProbe"], worker["readinessProbe"]
    [port] = worker["ports"]

    assert not {"startupProbe", "lifecycle"} & worker.keys()
    assert liveness["httpGet"] == {"path": "/healthz", "port": port["name"]}
    assert readiness["httpGet"] == {"path": "/readyz", "port": port["name"]}
    assert port["containerPort"] == ScoringSettings.model_fields["http_port"].default
    # As long as a worker itself takes for being late.
    assert (liveness["failureThreshold"] - 1) * liveness["periodSeconds"] > HANGS_SECONDS
    # It does not listen before it has reached PostgreSQL, or given up.
    assert liveness["initialDelaySeconds"] > ScoringSettings.model_fields["database_timeout_seconds"].default
    assert CHECK_SECONDS < readiness["timeoutSeconds"] < readiness["periodSeconds"]


def test_probes_from_outside_are_answered() -> None:
    """The port is open to the kubelet, under whatever name it asks, and a worker without it does not start."""
    settings = read_settings()

    assert not is_loopback(settings["SCORING_HTTP_HOST"])
    assert settings["SCORING_HTTP_REQUIRED"] == "true"
    assert {
        container("Deployment")[f"{name}nessProbe"]["httpGet"]["path"] for name in ("live", "readi")
    } == PROBES
    # Else nobody could see the console, which is closed to strangers there.
    assert "SCORING_CONSOLE_TOKEN" in secret("scoring-worker")
    assert "SCORING_CONSOLE_DATABASE_URL" not in secret("scoring-worker"), (
        "workers do not get an operator's rights"
    )


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
    assert ("ports" in only) == (kind == "Deployment")
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
    connections = workers * (ScoringSettings.model_fields["database_pool_size"].default + CONNECTIONS)

    assert f"{sum(limits()):,} index entries at most" in readme
    assert f"three more during a rollout, {connections}" in readme
    assert workers - most == 3
