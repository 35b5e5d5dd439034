"""What the router asks its host app for: who calls, and with which engine and producer to serve him."""

from typing import Annotated

from fastapi import Depends, Header, HTTPException, Query, Request
from sqlalchemy.ext.asyncio import AsyncEngine

from demo.site.visitors import Visitor, Visitors
from producers import Producer, ProducerSettings
from producers.web import Identity


def the_visitors(request: Request) -> Visitors:
    """Who recognises people."""
    visitors: Visitors = request.app.state.visitors
    return visitors


def present_visitor(
    request: Request,
    page_of: Annotated[str | None, Header()] = None,
    stream_of: Annotated[str | None, Query(alias="page_of")] = None,
) -> Visitor | None:
    """The person at the browser, unless the page that asks was loaded for another one.

    Cookies are of the browser, not of the tab: whoever signs in or out in one tab does so for all others, and a tab
    that sleeps does not hear of it.

    Args:
        request: What was sent.
        page_of: The mark of the person for whom the page was loaded; None for what is no page of ours.
        stream_of: The same, of an EventSource, which can send no header.

    Returns:
        None for a browser that has no cookie of ours.

    Raises:
        HTTPException: 412, where another person is at this browser now.
    """
    visitors = the_visitors(request)
    visitor = visitors.recognise(request)
    if visitor is not None and {page_of, stream_of} - {None, visitors.mark(visitor)}:
        raise HTTPException(412, "Somebody else is at this browser now. Load the page again.")
    return visitor


def known_visitor(visitor: Annotated[Visitor | None, Depends(present_visitor)]) -> Visitor:
    """The person at the browser.

    Raises:
        HTTPException: 401, for a browser that has no cookie of ours.
    """
    if visitor is None:
        raise HTTPException(401, "Load the page first: it gives you a cookie.")
    return visitor


KnownVisitor = Annotated[Visitor, Depends(known_visitor)]


def current_identity(visitor: KnownVisitor) -> Identity:
    """Whose answers these are."""
    if visitor.user_id is not None:
        return Identity(user_id=visitor.user_id)
    return Identity(anonymous_token=visitor.token)


def token_to_claim() -> None:
    """Nothing that a page may claim: our sign-in claims by itself, before the cookie with the token is gone."""


def get_producer(request: Request) -> Producer:
    """The one producer of this process."""
    producer: Producer = request.app.state.producer
    return producer


def get_engine(request: Request) -> AsyncEngine:
    """The engine of this process."""
    engine: AsyncEngine = request.app.state.engine
    return engine


def get_settings(request: Request) -> ProducerSettings:
    """How long an answer may be, among other things."""
    settings: ProducerSettings = request.app.state.settings
    return settings
