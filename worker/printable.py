"""Text as it is: what a terminal would obey, or a reader be misled by, is shown as its number.

A reason may come from a model, a name from a web app. Control characters move a terminal's cursor or change its title,
and characters that turn the direction of writing make a text read as another one than it is.
"""

from __future__ import annotations

import unicodedata


def visible(value: str) -> str:
    """Escape what is neither to be seen nor a space."""
    if value.isprintable():
        return value
    return "".join(char if _is_seen(char) else char.encode("unicode_escape").decode() for char in value)


def visible_json(document: str) -> str:
    """Escape the same in a JSON document, which stays the same document; line ends stay."""
    if document.replace("\n", "").isprintable():
        return document
    return "".join(char if char == "\n" or _is_seen(char) else _json_escape(char) for char in document)


def _is_seen(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4))
