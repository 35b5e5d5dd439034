"""The Kubernetes manifests, read, and checked against Kubernetes' schemas and KEDA's fields."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from tests.kubernetes.keda_objects import ScaledObject, TriggerAuthentication

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel


ROOT: Final = Path(__file__).parents[2]
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
