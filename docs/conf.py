"""How Sphinx makes the documentation site out of the pages of this folder: ``make docs``.

Nothing is fetched while it is built, and nothing while it is read. Every warning is an error: see ``tests/docs``.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from contextlib import suppress
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pygments.lexers.sql import PostgresLexer
from sphinx.ext.napoleon.docstring import GoogleDocstring

if TYPE_CHECKING:
    from docutils.nodes import Element
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

FOLDER: Final = Path(__file__).parent
ROOMS: Final = {"storage", "producers", "worker"}

project = "assessment-scoring"
project_copyright = "the authors of assessment-scoring"
release = version = installed_version("assessment-scoring")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
nitpicky = True

smartquotes_action = "qe"  # quotes and dots; two dashes begin an option

html_theme = "furo"
html_title = "assessment-scoring"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"top_of_page_buttons": []}

myst_heading_anchors = 3  # links like operations.md#settings, as a git host makes them
myst_enable_extensions = ["attrs_block"]

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
add_module_names = False

# What other projects document; their inventories would have to be fetched.
_FOREIGN: Final = (
    "APIRouter|AsyncConnection|AsyncEngine|BaseModel|BaseSettings|CollectorRegistry|Redis|UUID|datetime|Path"
)
nitpick_ignore_regex = [
    ("py:.*", rf"(.*\.)?({_FOREIGN})"),
    # Types of one module that nobody else names: what a function takes is said in its own description.
    ("py:class", r"(.*\.)?(Submission|Action|Whose|Result|Kind)"),
]

# Autodoc imports with TYPE_CHECKING set, which FastAPI's models do not survive; what is imported already stays.
with suppress(ImportError):
    importlib.import_module("fastapi")

# Pages on optional parts: left out where the part is missing.
_NEEDED: Final = {"reference/web.md": "producers.web"}
exclude_patterns += [page for page, module in _NEEDED.items() if importlib.util.find_spec(module) is None]

_LINK: Final = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<target>(?:\.\./)+[^)#\s]*)(?:#[^)\s]*)?\)")


def name_files_outside(app: Sphinx, docname: str, source: list[str]) -> None:
    """Show links that leave this folder as the path: the site holds pages, not the repository.

    On a git host they stay links. One that leads to nothing is left as it is, and the build fails over it.
    """
    folder = Path(app.srcdir, docname).parent

    def replaced(link: re.Match[str]) -> str:
        target = (folder / link["target"]).resolve()
        if target.is_relative_to(FOLDER) or not target.exists():
            return link[0]
        path = f"`{target.relative_to(FOLDER.parent)}`"
        return path if link["text"].strip("`") in path else f"{link['text']} ({path})"

    source[0] = _LINK.sub(replaced, source[0])


def errors_on_their_page(app: Sphinx, what: str, _name: str, thing: Any, skip: Any, _options: Any) -> Any:
    """Describe errors once, on the page of errors, not again with each package that exports them."""
    if what == "module" and isinstance(thing, type) and thing.__module__.endswith(".errors"):
        return skip if app.env.docname == "reference/errors" else True
    return skip


def where_it_is_defined(app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: Element) -> Any:
    """Follow ``storage.InvalidInputError``, as it is imported, to ``storage.errors.InvalidInputError``, as it is described."""
    package, _, name = node.get("reftarget", "").rpartition(".")
    if node.get("refdomain") != "py" or package.partition(".")[0] not in ROOMS:
        return None
    thing = getattr(importlib.import_module(package), name, None)
    if thing is None or thing.__module__ == package:
        return None
    return env.domains.python_domain.resolve_xref(
        env, node["refdoc"], app.builder, "obj", f"{thing.__module__}.{thing.__qualname__}", node, shown
    )


def plain_returns(self: GoogleDocstring, *_args: Any, **_kwargs: Any) -> list[tuple[str, str, list[str]]]:
    """Read what stands below "Returns:" as prose: types stand in the signature, and a colon does not end one here."""
    lines = self._dedent(self._consume_to_next_section())
    return [("", "", lines)] if lines else []


def setup(app: Sphinx) -> None:
    """Register what this project needs."""
    GoogleDocstring._consume_returns_section = plain_returns  # type: ignore[method-assign,assignment]
    app.add_lexer("sql", PostgresLexer)  # Pygments' plain SQL knows no $1
    app.connect("source-read", name_files_outside)
    app.connect("autodoc-skip-member", errors_on_their_page)
    app.connect("missing-reference", where_it_is_defined)
