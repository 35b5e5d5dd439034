"""What a producer raises, besides the refusals of ``storage.errors``."""

from __future__ import annotations


class ProducerError(Exception):
    """The producer could not do what was asked."""


class InvalidSettingsError(ProducerError):
    """A setting is missing or wrong; the message names the variable."""


class ProducerClosedError(ProducerError):
    """The producer was closed; nothing was stored."""
