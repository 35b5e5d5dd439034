"""Everything that can go wrong, each as a small class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.chaos.faults.messages import MessagesDoubled, MessagesForged
from tests.chaos.faults.network import CutOffFromModel, CutOffFromPostgres, CutOffFromRedis
from tests.chaos.faults.people import AnswersRescored, EditionPublished, ProducerKilled
from tests.chaos.faults.provider import ProviderFails, ProviderHangs, ProviderLimits
from tests.chaos.faults.servers import (
    BackendsTerminated,
    PostgresCrashes,
    RedisEmptied,
    RedisHangs,
    RedisKilled,
)
from tests.chaos.faults.workers import RollingRestart, WorkerKilled, WorkerStalled, WorkerStopped

if TYPE_CHECKING:
    from tests.chaos.faults.base import Fault

FAULTS: Final[tuple[type[Fault], ...]] = (
    WorkerKilled,
    WorkerStopped,
    RollingRestart,
    WorkerStalled,
    RedisKilled,
    RedisEmptied,
    RedisHangs,
    PostgresCrashes,
    BackendsTerminated,
    CutOffFromPostgres,
    CutOffFromRedis,
    CutOffFromModel,
    ProviderLimits,
    ProviderFails,
    ProviderHangs,
    MessagesForged,
    MessagesDoubled,
    ProducerKilled,
    EditionPublished,
    AnswersRescored,
)
