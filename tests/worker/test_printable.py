from __future__ import annotations

import json
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from worker.printable import visible, visible_json

UNSEEN = {"Cc", "Cf", "Zl", "Zp"}


@given(st.text())
def test_json_stays_the_same_document(text: str) -> None:
    """Every text is read back as it was, and nothing that a terminal obeys is in the document."""
    document = visible_json(json.dumps({"text": text}, ensure_ascii=False, indent=2))

    assert json.loads(document) == {"text": text}
    assert not {unicodedata.category(char) for char in document.replace("\n", "")} & UNSEEN


@given(st.text())
def test_what_is_shown_can_be_seen(text: str) -> None:
    """Letters of all scripts and spaces stay; what controls anything does not."""
    shown = visible(text)

    assert not {unicodedata.category(char) for char in shown} & UNSEEN
    kept = [char for char in text if char.isprintable()]
    assert all(char in shown for char in kept)


def test_a_text_that_would_mislead_is_shown_as_it_is() -> None:
    """Escape sequences of both kinds, and a name that would be read from the right."""
    assert visible("a\x1b[2J\x9b31m \u202etxt.exe") == r"a\x1b[2J\x9b31m \u202etxt.exe"
    assert visible("«\u202fAPI\u202f» 不") == "«\u202fAPI\u202f» 不"
