"""KEDA's two objects, as far as our manifests use them: a field that does not stand here is refused.

No package brings KEDA's schemas to Python, and the one for JavaScript lets unknown fields pass. So these follow its
documentation of ``ScaledObject``, ``TriggerAuthentication`` and the ``postgresql`` trigger. The autoscaler's ``behavior``
is Kubernetes' own and is checked against Kubernetes' schema, in the object that KEDA makes of it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

NAME = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
# What a postgresql trigger needs to connect. KEDA takes one URL as well, see secret.example.yaml.
CONNECTION = frozenset({"host", "port", "dbName", "userName", "password", "sslmode"})


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, alias_generator=to_camel)


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

    secret_target_ref: list[SecretTargetRef]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = [each.parameter for each in self.secret_target_ref]
        if sorted(given) != sorted(CONNECTION):
            msg = f"expected each of {', '.join(sorted(CONNECTION))} once"
            raise ValueError(msg)
        return self


class TriggerAuthentication(_Strict):
    """How a trigger logs in."""

    api_version: Literal["keda.sh/v1alpha1"]
    kind: Literal["TriggerAuthentication"]
    metadata: Metadata
    spec: TriggerAuthenticationSpec


class PostgresqlMetadata(_Strict):
    """All values are texts, numbers too: KEDA's API refuses anything else."""

    query: str
    target_query_value: Annotated[str, Field(pattern=r"^[1-9]\d*$")]


class AuthenticationRef(_Strict):
    """Which TriggerAuthentication, in the same namespace."""

    name: NAME


class Trigger(_Strict):
    """What is measured, and how the autoscaler divides it."""

    type: Literal["postgresql"]
    metric_type: Literal["AverageValue"]
    authentication_ref: AuthenticationRef
    metadata: PostgresqlMetadata


class AutoscalerConfig(_Strict):
    """Handed on to Kubernetes as it is."""

    behavior: dict[str, Any]


class Advanced(_Strict):
    """All that we set of it."""

    horizontal_pod_autoscaler_config: AutoscalerConfig


class ScaleTargetRef(_Strict):
    """What is scaled, in the same namespace."""

    api_version: Literal["apps/v1"]
    kind: Literal["Deployment"]
    name: NAME


class ScaledObjectSpec(_Strict):
    """How far, how often, by what."""

    scale_target_ref: ScaleTargetRef
    polling_interval: Annotated[int, Field(ge=1)]
    min_replica_count: Annotated[int, Field(ge=0)]
    max_replica_count: Annotated[int, Field(ge=1)]
    advanced: Advanced
    triggers: Annotated[list[Trigger], Field(min_length=1, max_length=1)]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_replica_count > self.max_replica_count:
            raise ValueError("expected minReplicaCount to be at most maxReplicaCount")
        return self


class ScaledObject(_Strict):
    """What is scaled by what."""

    api_version: Literal["keda.sh/v1alpha1"]
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
                "scaleTargetRef": self.spec.scale_target_ref.model_dump(by_alias=True),
                "minReplicas": max(1, self.spec.min_replica_count),
                "maxReplicas": self.spec.max_replica_count,
                "behavior": self.spec.advanced.horizontal_pod_autoscaler_config.behavior,
                "metrics": [
                    {
                        "type": "External",
                        "external": {
                            "metric": {"name": f"s0-{trigger.type}"},
                            "target": {
                                "type": trigger.metric_type,
                                "averageValue": trigger.metadata.target_query_value,
                            },
                        },
                    }
                ],
            },
        }
