"""The operator's console: everybody who may look sees the same; who knows the token may retry and dismiss."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs

from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from storage.errors import StorageError, StorageUnavailableError
from worker.http.acting import Target
from worker.http.gate import Access
from worker.http.looks import PAGE
from worker.http.pages import Pages, static_file
from worker.http.sessions import COOKIE, PATH, SESSION_SECONDS, is_name, same_form

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request
    from starlette.routing import BaseRoute

    from worker.http.acting import Acting, Rights
    from worker.http.gate import Gate, Visitor
    from worker.http.looks import Looks

HIGHEST_ID = 2**63 - 1
_KIND_CHARS = 16
_DONE: Mapping[str, str] = {"retry": "will be scored again", "dismiss": "dismissed"}


class Console:
    """Everything below ``/console``.

    Args:
        gate: Tells visitors apart.
        looks: Reads what is shown.
        acting: Does what is asked for.
    """

    def __init__(self, gate: Gate, looks: Looks, acting: Acting) -> None:
        self._gate = gate
        self._looks = looks
        self._acting = acting
        self._pages = Pages()

    def routes(self) -> list[BaseRoute]:
        """The addresses."""
        return [
            Route(PATH, self.overview),
            Route(f"{PATH}/live", self.live),
            Route(f"{PATH}/dead", self.dead),
            Route(f"{PATH}/ask", self.ask),
            Route(f"{PATH}/act", self.act, methods=["POST"]),
            Route(f"{PATH}/login", self.login_form),
            Route(f"{PATH}/login", self.login, methods=["POST"]),
            Route(f"{PATH}/logout", self.logout, methods=["POST"]),
            Route(f"{PATH}/static/{{name}}", self.static),
        ]

    async def overview(self, request: Request) -> Response:
        """The first page."""
        visitor = self._gate.visitor(request)
        if visitor.access is Access.NOTHING:
            return self._refused(request, visitor)
        sections, rights = await self._sections(visitor)
        return self._page(
            "console.html",
            visitor,
            sections=sections,
            rights=rights,
            done=_done(request.query_params),
        )

    async def live(self, request: Request) -> Response:
        """Only what changes, for the page that is open."""
        visitor = self._gate.visitor(request)
        if visitor.access is Access.NOTHING:
            return self._refused(request, visitor)
        sections, _ = await self._sections(visitor)
        return HTMLResponse(sections)

    async def dead(self, request: Request) -> Response:
        """A page of the dead, oldest first."""
        visitor = self._gate.visitor(request)
        if visitor.access is Access.NOTHING:
            return self._refused(request, visitor)
        kind, after = _kind(request.query_params), _id(request.query_params, "after") or 0
        try:
            rows = await self._looks.page_of_dead(kind=kind, after_handoff_id=after)
        except StorageError as exc:
            return self._failed(visitor, exc)
        return self._page(
            "dead.html",
            visitor,
            rows=rows,
            kind=kind,
            next_after=rows[-1]["handoff_id"] if len(rows) == PAGE else None,
            rights=await self._rights(visitor),
        )

    async def ask(self, request: Request) -> Response:
        """Ask before anything is changed."""
        visitor = self._gate.visitor(request)
        if visitor.access is Access.NOTHING or visitor.session is None:
            return self._refused(request, visitor)
        action, target = _action(request.query_params), _target(request.query_params)
        if action is None or target is None:
            return self._told(visitor, "This link is incomplete.", status=400, acting=False)
        try:
            if target.kind is not None:
                number, row = await self._looks.of_kind(target.kind, target.until_handoff_id)
            else:
                row = await self._looks.one_dead(target.response_id or 0)
                # What was dismissed can still be retried, and not be dismissed again.
                number = int(row is not None and (action == "retry" or row["state"] == "dead"))
        except StorageError as exc:
            return self._failed(visitor, exc)
        return self._page(
            "ask.html",
            visitor,
            action=action,
            target=target,
            number=number,
            row=row,
            rights=await self._rights(visitor),
        )

    async def act(self, request: Request) -> Response:
        """Do what was confirmed, or what a program asks for."""
        visitor = self._gate.visitor(request)
        if visitor.access is not Access.ACT or visitor.name is None:
            return self._refused(request, visitor)
        form = await _form(request)
        if (refusal := self._foreign(request, visitor, form)) is not None:
            return refusal
        action, target = _action(form), _target(form)
        if action is None or target is None:
            return self._told(visitor, "This form is incomplete; nothing was changed.", status=400)
        rights = await self._acting.look.get()
        if not rights.may_act:
            return self._told(visitor, f"{rights.problem} Nothing was changed.", status=503)
        try:
            changed = await self._acting.perform(action, target, actor=visitor.name)
        except StorageError as exc:
            return self._failed(visitor, exc, acting=True)
        self._looks.changed()
        return _did(visitor, action, changed)

    async def login_form(self, request: Request) -> Response:
        """Ask for name and token."""
        return self._login_page(self._gate.visitor(request))

    async def login(self, request: Request) -> Response:
        """Give a cookie to who knows the token."""
        visitor = self._gate.visitor(request)
        form = await _form(request)
        name = form.get("name", "").strip()
        if not _same_origin(request):
            return self._login_page(visitor, problem="This form is from another site.", status=403)
        if not is_name(name):
            return self._login_page(visitor, problem="Your name is missing, or no name.", status=422)
        given = self._gate.sign_in(request, name=name, token=form.get("token", ""))
        if isinstance(given, str):
            response = RedirectResponse(PATH, status_code=303)
            response.set_cookie(
                COOKIE,
                given,
                max_age=int(SESSION_SECONDS),
                path=PATH,
                httponly=True,
                samesite="strict",
                secure=_came_over_tls(request),
            )
            return response
        if given is not None:
            problem = f"Too many wrong tokens. Try again in {given:.0f} s."
            answer = self._login_page(visitor, problem=problem, name=name, status=429)
            answer.headers["Retry-After"] = f"{given:.0f}"
            return answer
        return self._login_page(visitor, problem="This is not the token.", name=name, status=403)

    async def logout(self, request: Request) -> Response:
        """Forget who this is."""
        visitor = self._gate.visitor(request)
        if (refusal := self._foreign(request, visitor, await _form(request))) is not None:
            return refusal
        response = RedirectResponse(PATH, status_code=303)
        response.delete_cookie(
            COOKIE, path=PATH, httponly=True, samesite="strict", secure=_came_over_tls(request)
        )
        return response

    async def static(self, request: Request) -> Response:
        """Styles, the script and the icon: the same for everybody."""
        found = static_file(request.path_params["name"])
        if found is None:
            return Response("No such file.\n", status_code=404, media_type="text/plain")
        content, media_type = found
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    async def _sections(self, visitor: Visitor) -> tuple[str, Rights | None]:
        status, hour, dead, rights = await asyncio.gather(
            self._looks.status.get(), self._looks.hour.get(), self._looks.dead.get(), self._rights(visitor)
        )
        return self._pages.live(status, hour, dead, rights), rights

    async def _rights(self, visitor: Visitor) -> Rights | None:
        return await self._acting.look.get() if visitor.session is not None else None

    def _foreign(self, request: Request, visitor: Visitor, form: Mapping[str, str]) -> Response | None:
        """Refuse a form that came from elsewhere than from one of our pages in this session."""
        if visitor.by_program:
            return None
        session = visitor.session
        if session and same_form(session, form.get("csrf", "")) and _same_origin(request):
            return None
        return self._told(visitor, "This form is not from this session; nothing was changed.", status=403)

    def _page(self, template: str, visitor: Visitor, *, status: int = 200, **values: Any) -> Response:
        content = self._pages.render(template, visitor=visitor, has_token=self._gate.has_token, **values)
        return HTMLResponse(content, status_code=status)

    def _told(self, visitor: Visitor, sentence: str, *, status: int, acting: bool = True) -> Response:
        if visitor.by_program:
            return JSONResponse({"problem": sentence}, status_code=status)
        return self._page(
            "told.html",
            visitor,
            heading="Not done" if acting else "Nothing to show",
            sentence=sentence,
            status=status,
        )

    def _failed(self, visitor: Visitor, exc: StorageError, *, acting: bool = False) -> Response:
        status = 503 if isinstance(exc, StorageUnavailableError) else 500
        said = f"This could not be {'done' if acting else 'read'}: {exc}"
        return self._told(visitor, said, status=status, acting=acting)

    def _login_page(
        self, visitor: Visitor, *, problem: str | None = None, name: str = "", status: int = 200
    ) -> Response:
        return self._page("login.html", visitor, problem=problem, name=name, status=status)

    def _refused(self, request: Request, visitor: Visitor) -> Response:
        """Who may not: a person is asked for the token, a program is told."""
        if visitor.wait_seconds:
            sentence = f"Too many wrong tokens. Try again in {visitor.wait_seconds:.0f} s."
            return JSONResponse(
                {"problem": sentence},
                status_code=429,
                headers={"Retry-After": f"{visitor.wait_seconds:.0f}"},
            )
        if visitor.by_program:
            known = visitor.access is not Access.NOTHING
            sentence = "Say who acts, in the header Scoring-Actor." if known else "This is not the token."
            return JSONResponse({"problem": sentence}, status_code=403 if known else 401)
        if request.method != "GET" or request.url.path == f"{PATH}/live":
            return self._told(visitor, "Sign in first; nothing was changed.", status=403)
        return self._login_page(visitor, status=403)


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form as browsers send it by default; of a repeated one the last."""
    body = (await request.body()).decode("utf-8", "replace")
    try:
        fields = parse_qs(body, max_num_fields=20)
    except ValueError:
        return {}
    return {name: values[-1] for name, values in fields.items()}


def _same_origin(request: Request) -> bool:
    """Whether the page that sent this is ours, as browsers tell; who tells nothing is no browser, and passes."""
    if (site := request.headers.get("sec-fetch-site")) is not None:
        return site in {"same-origin", "none"}
    origin = request.headers.get("origin")
    return origin is None or origin.partition("://")[2] == request.headers.get("host")


def _came_over_tls(request: Request) -> bool:
    """Whether a proxy in front of us speaks TLS, by what it says. Who only claims so has a cookie that he cannot use."""
    return request.headers.get("x-forwarded-proto", "").rpartition(",")[2].strip() == "https"


def _action(given: Mapping[str, str]) -> Literal["retry", "dismiss"] | None:
    match given.get("action"):
        case "retry":
            return "retry"
        case "dismiss":
            return "dismiss"
        case _:
            return None


def _target(given: Mapping[str, str]) -> Target | None:
    if (response_id := _id(given, "response_id")) is not None:
        return Target(response_id=response_id, seen_dead=given.get("seen") == "dead")
    kind, until = _kind(given), _id(given, "until")
    return None if kind is None or until is None else Target(kind=kind, until_handoff_id=until)


def _kind(given: Mapping[str, str]) -> str | None:
    kind = given.get("kind", "")
    return kind if len(kind) == _KIND_CHARS and set(kind) <= set("0123456789abcdef") else None


def _id(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(HIGHEST_ID))):
        return None
    return number if (number := int(text)) <= HIGHEST_ID else None


def _did(visitor: Visitor, action: str, changed: list[int]) -> Response:
    if visitor.by_program:
        return JSONResponse({"action": action, "responses": sorted(changed)})
    return RedirectResponse(f"{PATH}?done={action}&answers={len(changed)}", status_code=303)


def _done(query: Mapping[str, str]) -> tuple[int, str] | None:
    """What the page says after something was done: a number and one of our own words, whatever the address says."""
    number, word = _id(query, "answers"), _DONE.get(query.get("done", ""))
    return None if number is None or word is None else (number, word)
