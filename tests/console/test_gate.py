from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.http.guesses import ADDRESSES, ALL, EACH, WINDOW_SECONDS, Guesses
from worker.http.sessions import SESSION_SECONDS, Sessions, is_name, same_form

TOKEN = "a-token-that-nobody-guesses"
# One for all examples: a cookie is random, and what is drawn must depend on nothing but the draw.
COOKIE = Sessions(TOKEN).cookie("Ada")


@given(st.text(min_size=1, max_size=100).filter(is_name))
def test_a_cookie_brings_the_name_back(name: str) -> None:
    """Whatever characters it has, dots and umlauts among them."""
    session = Sessions(TOKEN).read(Sessions(TOKEN).cookie(name))

    assert session is not None
    assert session.name == name


@given(st.data())
def test_a_changed_cookie_is_none(data: st.DataObject) -> None:
    """Not one character of it may differ: not the name, not the time, not the signature."""
    cookie = COOKIE
    place = data.draw(st.integers(0, len(cookie) - 1))
    other = data.draw(st.sampled_from("abcXYZ019.-_").filter(lambda character: character != cookie[place]))

    assert Sessions(TOKEN).read(cookie[:place] + other + cookie[place + 1 :]) is None


@given(st.text(max_size=200) | st.none())
def test_any_text_is_no_cookie(text: str | None) -> None:
    """Nonsense is refused and never an error."""
    assert Sessions(TOKEN).read(text) is None


def test_a_cookie_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a working day, and at once when the token changes."""
    cookie = Sessions(TOKEN).cookie("Ada")
    assert Sessions(TOKEN).read(cookie) is not None
    assert Sessions("another-token-of-enough-length").read(cookie) is None

    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + SESSION_SECONDS + 1)
    assert Sessions(TOKEN).read(cookie) is None


def test_forms_are_of_one_session() -> None:
    """Each sign-in has a secret of its own for its forms; it is not the cookie, and a near miss is one."""
    one, other = (Sessions(TOKEN).read(Sessions(TOKEN).cookie("Ada")) for _ in range(2))
    assert one is not None
    assert other is not None

    assert same_form(one, one.csrf)
    for wrong in (other.csrf, "", one.csrf[:-1], one.csrf + "0", "\udcff"):
        assert not same_form(one, wrong)


@pytest.mark.parametrize("given_token", ["", "a", TOKEN + "x", TOKEN[:-1], TOKEN.upper(), "\udcff", "ü"])
def test_only_the_token_is_the_token(given_token: str) -> None:
    """Whatever else is sent is not."""
    assert Sessions(TOKEN).knows(TOKEN)
    assert not Sessions(TOKEN).knows(given_token)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x00", "x" * 101])
def test_what_is_no_name(name: str) -> None:
    """It goes into a record that people read."""
    assert not is_name(name)
    assert is_name("Ada Löwe (night)")


def test_wrong_tokens_are_limited_by_address() -> None:
    """Five in a minute; other addresses may go on, and a minute later so may this one."""
    now = 100.0
    guesses = Guesses(lambda: now)
    for _ in range(EACH):
        assert guesses.wait_seconds("a") == 0
        guesses.wrong("a")

    assert guesses.wait_seconds("a") == WINDOW_SECONDS
    assert guesses.wait_seconds("b") == 0
    now += WINDOW_SECONDS
    assert guesses.wait_seconds("a") == 0


def test_wrong_tokens_are_limited_in_all() -> None:
    """Many addresses get no further than one; and what is remembered of them is bounded."""
    now = 100.0
    guesses = Guesses(lambda: now)
    for number in range(ALL):
        assert guesses.wait_seconds(f"{number}") == 0
        guesses.wrong(f"{number}")
    assert guesses.wait_seconds("new") == WINDOW_SECONDS

    for number in range(3 * ADDRESSES):
        guesses.wrong(f"{number}")
    assert len(guesses._by_address) == ADDRESSES
