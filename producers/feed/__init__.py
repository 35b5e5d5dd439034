"""The live feed: tells whoever listens how his answers fare, from PostgreSQL alone."""

from producers.feed.feed import Feed, FeedSettings
from producers.feed.listeners import Cursor, Listener, parse_cursor

__all__ = ["Cursor", "Feed", "FeedSettings", "Listener", "parse_cursor"]
