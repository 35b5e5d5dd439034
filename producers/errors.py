"""What a producer raises, besides the refusals of ``storage.errors``."""

from __future__ import annotations


class ProducerError(Exception):
    """The producer could not do what was asked."""


class InvalidSettingsError(ProducerError):
    """A setting is missing or wrong; the message names the variable."""


class ProducerClosedError(ProducerError):
    """The producer was closed; nothing was stored."""


class TooManyListenersError(ProducerError):
    """So many streams are open already that this process opens no other.

    Args:
        is_owners: Whether this owner has too many; else everybody together.
    """

    def __init__(self, *, is_owners: bool) -> None:
        super().__init__((self.__doc__ or "").partition("\n")[0])
        self.is_owners = is_owners
