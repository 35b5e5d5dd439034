"""The HTTP interface of the pipeline, as a FastAPI router that a web app mounts with one line. Needs the extra ``[web]``."""

from producers.feed import FeedSettings
from producers.web.events import EventStreams, StreamSettings
from producers.web.identity import Identity
from producers.web.router import create_router

__all__ = ["EventStreams", "FeedSettings", "Identity", "StreamSettings", "create_router"]
