"""KEDA's two objects, as far as our manifests use them: a field that does not stand here is refused.

No registry has KEDA's own schemas in a form that Python reads, so these follow its documentation of ``ScaledObject``,
``TriggerAuthentication`` and the ``postgresql`` trigger. The autoscaler's ``behavior`` is Kubernetes' own and is checked
against Kubernetes' schema, in the object that KEDA makes of it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

NAME = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
# What a postgresql trigger needs to connect. KEDA takes one URL as well, see secret.example.yaml.
CONNECTION = frozenset({"host", "port", "dbName", "userName", "password", "sslmode"})


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Metadata(_Strict):
    """What an object is called."""

    name: NAME
    labels: dict[str, str]


class SecretTargetRef(_Strict):
    """Where a parameter of a trigger comes from."""

    parameter: Literal["host", "port", "dbName", "userName", "password", "sslmode"]
    name: NAME
    key: str


class TriggerAuthenticationSpec(_Strict):
    """Every parameter once, and no other source than Secrets."""

    secretTargetRef: list[SecretTargetRef]  # noqa: N815 - KEDA's name

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = [each.parameter for each in self.secretTargetRef]
        if sorted(given) != sorted(CONNECTION):
            msg = f"expected each of {', '.join(sorted(CONNECTION))} once"
            raise ValueError(msg)
        return self


class TriggerAuthentication(_Strict):
    """How a trigger logs in."""

    apiVersion: Literal["keda.sh/v1alpha1"]  # noqa: N815 - KEDA's name
    kind: Literal["TriggerAuthentication"]
    metadata: Metadata
    spec: TriggerAuthenticationSpec


class PostgresqlMetadata(_Strict):
    """All values are texts, numbers too: KEDA's API refuses anything else."""

    query: str
    targetQueryValue: Annotated[str, Field(pattern=r"^[1-9]\d*$")]  # noqa: N815 - KEDA's name


class AuthenticationRef(_Strict):
    """Which TriggerAuthentication, in the same namespace."""

    name: NAME


class Trigger(_Strict):
    """What is measured, and how the autoscaler divides it."""

    type: Literal["postgresql"]
    metricType: Literal["AverageValue"]  # noqa: N815 - KEDA's name
    authenticationRef: AuthenticationRef  # noqa: N815 - KEDA's name
    metadata: PostgresqlMetadata


class AutoscalerConfig(_Strict):
    """Handed on to Kubernetes as it is."""

    behavior: dict[str, Any]


class Advanced(_Strict):
    """All that we set of it."""

    horizontalPodAutoscalerConfig: AutoscalerConfig  # noqa: N815 - KEDA's name


class ScaleTargetRef(_Strict):
    """What is scaled, in the same namespace."""

    apiVersion: Literal["apps/v1"]  # noqa: N815 - KEDA's name
    kind: Literal["Deployment"]
    name: NAME


class ScaledObjectSpec(_Strict):
    """How far, how often, by what."""

    scaleTargetRef: ScaleTargetRef  # noqa: N815 - KEDA's name
    pollingInterval: Annotated[int, Field(ge=1)]  # noqa: N815 - KEDA's name
    minReplicaCount: Annotated[int, Field(ge=0)]  # noqa: N815 - KEDA's name
    maxReplicaCount: Annotated[int, Field(ge=1)]  # noqa: N815 - KEDA's name
    advanced: Advanced
    triggers: Annotated[list[Trigger], Field(min_length=1, max_length=1)]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.minReplicaCount > self.maxReplicaCount:
            raise ValueError("expected minReplicaCount to be at most maxReplicaCount")
        return self


class ScaledObject(_Strict):
    """What is scaled by what."""

    apiVersion: Literal["keda.sh/v1alpha1"]  # noqa: N815 - KEDA's name
    kind: Literal["ScaledObject"]
    metadata: Metadata
    spec: ScaledObjectSpec

    def autoscaler(self) -> dict[str, Any]:
        """The HorizontalPodAutoscaler that KEDA makes of this."""
        [trigger] = self.spec.triggers
        return {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": f"keda-hpa-{self.metadata.name}", "labels": self.metadata.labels},
            "spec": {
                "scaleTargetRef": self.spec.scaleTargetRef.model_dump(),
                "minReplicas": max(1, self.spec.minReplicaCount),
                "maxReplicas": self.spec.maxReplicaCount,
                "behavior": self.spec.advanced.horizontalPodAutoscalerConfig.behavior,
                "metrics": [
                    {
                        "type": "External",
                        "external": {
                            "metric": {"name": f"s0-{trigger.type}"},
                            "target": {
                                "type": trigger.metricType,
                                "averageValue": trigger.metadata.targetQueryValue,
                            },
                        },
                    }
                ],
            },
        }
