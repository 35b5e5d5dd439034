"""What a web app and an auth system import: store an answer or a claim, and be done."""

from producers.errors import InvalidSettingsError, ProducerClosedError, ProducerError
from producers.producer import Producer, open_producer
from producers.settings import ProducerSettings

__all__ = [
    "InvalidSettingsError",
    "Producer",
    "ProducerClosedError",
    "ProducerError",
    "ProducerSettings",
    "open_producer",
]
