"""YAML with line numbers: parses what people edit, and says where and how it went wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Enough of a value to recognise it in the file.
_SHOWN_CHARS = 40
# PyYAML speaks to programmers; these are the mistakes that prose in YAML invites.
_SYNTAX_HINTS = {
    "mapping values are not allowed": 'text with a colon in it must be quoted, or stand in a block after "|"',
    "could not find expected ':'": 'text over several lines must stand indented in a block after "|"',
    "found character '\\t'": "indent with spaces, not with tabs",
    "found character": 'text that begins with "@", "`" or "%" must be quoted',
    "undefined alias": 'text that begins with "*" must be quoted',
    "alphabetic or numeric character": 'text that begins with "*" or "&" must be quoted',
    "could not determine a constructor": 'text that begins with "!" must be quoted',
    "expected <block end>": "indent entries of one list alike, and close every quote",
    "end of stream": "close the quote that was opened",
    "special characters are not allowed": "remove the control character",
}
_MERGE_TAG = "tag:yaml.org,2002:merge"
_READ_AS = {
    "null": "nothing",
    "bool": "true or false",
    "int": "a number",
    "float": "a number",
    "timestamp": "a date",
}
# What PyYAML lets through of Python's own errors when a value looks like a date or a number and is none.
_UNREADABLE_SCALAR = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


class UnreadableYamlError(Exception):
    """The text is no YAML that can be checked.

    The message is the rest of a sentence that begins with the file's name.
    """


def load(text: str) -> tuple[Any, yaml.Node]:
    """Read one YAML document, as ``yaml.safe_load`` does, together with the nodes that know its lines.

    Args:
        text: The whole file.

    Returns:
        The plain values and the root of the nodes.

    Raises:
        UnreadableYamlError: The text is no YAML, is empty, or holds more than one document.
    """
    try:
        root = _compose(text)
        try:
            return yaml.safe_load(text), root
        except _UNREADABLE_SCALAR as exc:
            raise UnreadableYamlError(_scalar_problem(root)) from exc
    except RecursionError as exc:
        raise UnreadableYamlError(" is nested too deeply.") from exc
    except yaml.YAMLError as exc:
        raise UnreadableYamlError(_syntax_problem(exc)) from exc


def _compose(text: str) -> yaml.Node:
    documents: list[yaml.Node] = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    if not documents:
        raise UnreadableYamlError(" is empty.")
    if len(documents) > 1:
        line = line_of(documents[1])
        raise UnreadableYamlError(
            f', line {line}: a second document begins after "---"; give it a file of its own.'
        )
    for node in _nodes(documents[0], set()):
        if isinstance(node, yaml.MappingNode):
            for key, _ in node.value:
                if key.tag == _MERGE_TAG:
                    # A few hundred bytes of nested merges would keep the reader busy for hours.
                    raise UnreadableYamlError(
                        f', line {line_of(key)}: "<<" is not supported; write the fields out.'
                    )
    return documents[0]


def _syntax_problem(exc: yaml.YAMLError) -> str:
    said = " ".join(str(getattr(exc, part, None) or "") for part in ("context", "problem", "reason")).strip()
    mark = getattr(exc, "problem_mark", None)
    hint = next((hint for part, hint in _SYNTAX_HINTS.items() if part in said), "quote the text there")
    place = ":" if mark is None else f", line {mark.line + 1}:"
    return f"{place} this is not valid YAML ({said}); {hint}."


def _scalar_problem(root: yaml.Node) -> str:
    for node in _nodes(root, set()):
        if isinstance(node, yaml.ScalarNode) and node.style is None:
            try:
                yaml.safe_load(node.value)
            except _UNREADABLE_SCALAR:
                return f', line {line_of(node)}: "{_shown(node)}" looks like a date or a number and is none; quote it.'
    return " holds a value that does not fit the tag before it; quote it."


def repeated_keys(root: yaml.Node) -> Iterator[str]:
    """Find keys that stand twice in one mapping: YAML forbids them, PyYAML silently keeps the last."""
    for node in _nodes(root, set()):
        if not isinstance(node, yaml.MappingNode):
            continue
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in first:
                yield f'line {line_of(key)}: "{key.value}" already stands in line {first[key.value]}; keep one.'
            first.setdefault(key.value, line_of(key))


def node_at(root: yaml.Node, path: Sequence[str | int]) -> tuple[yaml.Node, bool]:
    """Follow a path of keys and positions as far as the file goes.

    Returns:
        The node at the end of the path and True, or the nearest node around it and False.
    """
    node = root
    for part in path:
        child = None
        if isinstance(node, yaml.MappingNode):
            child = next((value for key, value in node.value if key.value == part), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            child = node.value[part]
        if child is None:
            return node, False
        node = child
    return node, True


def line_of(node: yaml.Node) -> int:
    """Return the line in which a node begins, counted from 1 as editors do."""
    return int(node.start_mark.line) + 1


def as_read(node: yaml.Node | None) -> str:
    """Say what YAML made of a node, which is often not what its author meant."""
    if isinstance(node, yaml.MappingNode):
        return "is a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "is a list"
    if node is None or not node.value:
        return "is empty"
    kind = str(node.tag).rpartition(":")[2]
    return f"is read as {_READ_AS[kind]}" if kind in _READ_AS else f'is the text "{_shown(node)}"'


def quote_hint(node: yaml.Node | None) -> str:
    """Say how to write a node so that YAML reads it as text."""
    if isinstance(node, yaml.ScalarNode) and node.value:
        return f', so quote it: "{_shown(node)}"'
    if isinstance(node, yaml.CollectionNode) and node.flow_style:
        return ", so quote what begins with a bracket"
    return ""


def _shown(node: yaml.Node) -> str:
    shown = str(node.value)
    return shown if len(shown) <= _SHOWN_CHARS else f"{shown[:_SHOWN_CHARS]}…"


def _nodes(node: yaml.Node, seen: set[int]) -> Iterator[yaml.Node]:
    """Walk over every node once, however often aliases refer to it."""
    if id(node) in seen:
        return
    seen.add(id(node))
    yield node
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            for child in pair:
                yield from _nodes(child, seen)
    elif isinstance(node, yaml.SequenceNode):
        for child in node.value:
            yield from _nodes(child, seen)
