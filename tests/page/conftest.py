"""One site for all tests of the page, each with a browser profile, and so an identity, of its own."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from storage import create_engine
from tests.browser import new_context
from tests.page.site import running_site

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from playwright.async_api import Browser, BrowserContext
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.conftest import GivenServers
    from tests.page.site import Site


@pytest.fixture(scope="session")
def site(servers: GivenServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The demo's site with servers of its own, which may be broken and must be mended."""
    # `servers` skips, or fails in CI, where none can be started.
    with running_site(tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest.fixture(scope="session")
async def site_engine(site: Site) -> AsyncIterator[AsyncEngine]:
    """The site's own database, for what no student can do."""
    engine = create_engine(await asyncio.to_thread(site.database_url))
    yield engine
    await engine.dispose()


@pytest.fixture
async def make_profile(browser: Browser, site: Site) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Makes browser profiles that complain about nothing; options as for Playwright's ``new_context``."""
    async with AsyncExitStack() as profiles:
        heard: list[list[str]] = []

        async def make(*, may_complain: bool = False, **options: Any) -> BrowserContext:
            context, complaints = await profiles.enter_async_context(
                new_context(browser, **{"base_url": site.url, **options})
            )
            if not may_complain:
                heard.append(complaints)
            return context

        yield make
        assert [line for complaints in heard for line in complaints] == []


@pytest.fixture
async def profile(make_profile: Callable[..., Awaitable[BrowserContext]]) -> BrowserContext:
    """A browser profile of its own: a student whom the site does not know yet."""
    return await make_profile()


@pytest.fixture
async def unreliable(make_profile: Callable[..., Awaitable[BrowserContext]]) -> BrowserContext:
    """A profile whose connection is going to be bad: its console may complain."""
    return await make_profile(may_complain=True)
