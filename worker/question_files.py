"""Questions and rubrics as files: what an educator edits, read into what ``storage.publish_questions`` takes."""

from __future__ import annotations

import difflib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from storage.limits import MAX_KEY_CHARS, MAX_QUESTION_CHARS
from worker.errors import WorkerError
from worker.yaml_nodes import UnreadableYamlError, as_read, line_of, load, node_at, quote_hint, repeated_keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import yaml
    from pydantic_core import ErrorDetails

SUFFIXES = frozenset({".yaml", ".yml"})


class QuestionFileError(WorkerError):
    """The question files are not valid; nothing was read from any of them.

    Attributes:
        problems: One sentence for each problem, in the order of the files. A sentence names the file and the
            line, and the question and the field where there is one.
    """

    exit_status = 2

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        listed = "\n".join(f"- {problem}" for problem in self.problems)
        super().__init__(f"No question was read, because the files have {count}:\n{listed}")


def _text(value: str) -> str:
    if "\0" in value:
        raise ValueError("contains a NUL character, which PostgreSQL cannot store; remove it")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError("contains half of a surrogate pair, which is no character; remove it")
    if not any(char.isprintable() and not char.isspace() for char in value):
        raise ValueError("is blank; expected text")
    # A trailing line break ("|" keeps one, "|-" does not) must not make another question of it.
    stripped = value.strip()
    if len(stripped) > MAX_QUESTION_CHARS:
        raise ValueError(f"has {len(stripped):,} characters; expected at most {MAX_QUESTION_CHARS:,}")
    return stripped


def _key(value: str) -> str:
    if not _text(value).isprintable():
        raise ValueError("contains a line break or an invisible character; remove it")
    if value != value.strip():
        raise ValueError("begins or ends with a space; remove it")
    if len(value) > MAX_KEY_CHARS:
        raise ValueError(f"has {len(value):,} characters; expected at most {MAX_KEY_CHARS:,}")
    return value


_Text = Annotated[str, AfterValidator(_text)]
_Key = Annotated[str, AfterValidator(_key)]


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class _Scale(_Entry):
    min: float = 1.0
    max: float = 5.0

    @model_validator(mode="after")
    def _upwards(self) -> Self:
        if self.min >= self.max:
            raise ValueError(
                f"is upside down: min is {self.min:g}, max is {self.max:g}; expected min below max"
            )
        return self


class _Dimension(_Entry):
    name: _Key
    description: _Text = ""


class _Question(_Entry):
    id: _Key
    question: _Text
    rubric: _Text
    scale: _Scale = _Scale()
    dimensions: list[_Dimension] = Field(default_factory=list)
    reference_answer: _Text | None = None
    learning_outcome: _Text | None = None

    @field_validator("dimensions", mode="after")
    @classmethod
    def _distinct(cls, dimensions: list[_Dimension]) -> list[_Dimension]:
        seen: set[str] = set()
        for dimension in dimensions:
            if dimension.name.casefold() in seen:
                raise ValueError(f'has "{dimension.name}" twice; expected a different name for each')
            seen.add(dimension.name.casefold())
        return dimensions

    def as_published(self, module_slug: str) -> dict[str, Any]:
        """Return the mapping that ``storage.publish_questions`` takes; what the file leaves out is left out."""
        published: dict[str, Any] = {
            "module_slug": module_slug,
            "question_id": self.id,
            "question_text": self.question,
            "rubric": self.rubric,
            "scale_min": self.scale.min,
            "scale_max": self.scale.max,
        }
        if self.dimensions:
            published["dimensions"] = [dimension.model_dump() for dimension in self.dimensions]
        if self.reference_answer is not None:
            published["reference_answer"] = self.reference_answer
        if self.learning_outcome is not None:
            published["learning_outcome_name"] = self.learning_outcome
        return published


class _File(_Entry):
    module: _Key
    questions: list[Any] = Field(min_length=1)


@dataclass(slots=True)
class _Reading:
    """What has been read so far, over all files."""

    questions: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    places: defaultdict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))


def read_question_files(directory: Path) -> list[dict[str, Any]]:
    """Read every question file below a folder, or refuse them all with everything that is wrong in them.

    Files are those that end in ``.yaml`` or ``.yml``, at any depth, in the order of their paths; what begins
    with a dot is skipped. Each file is one mapping of ``module`` and ``questions``; a module may be spread over
    several files. Nothing is guessed: a value that YAML reads as something else than text (``id: 42``,
    ``id: yes``), an unknown key, a key given twice and a question that stands in two files are refused.

    Args:
        directory: The folder.

    Returns:
        One mapping for each question, in the order of files and of entries, as ``storage.publish_questions``
        takes them. Text carries no surrounding white space, so that an editor's last line break changes nothing.

    Raises:
        QuestionFileError: The folder is missing or holds no question file, or a file is not valid.
    """
    if not directory.is_dir():
        raise QuestionFileError(
            [f"{directory} is not a folder; expected one with question files (*.yaml, *.yml)."]
        )
    paths = sorted(_question_files(directory))
    if not paths:
        raise QuestionFileError(
            [f"{directory} holds no question file; expected at least one *.yaml or *.yml."]
        )
    reading = _Reading()
    for path in paths:
        _read_file(path, path.relative_to(directory).as_posix(), reading)
    for (module, question_id), places in reading.places.items():
        if len(places) > 1:
            reading.problems.append(
                f'{" and ".join(places)}: question "{question_id}" of module "{module}" is given more than once; '
                "keep one of them."
            )
    if reading.problems:
        raise QuestionFileError(reading.problems)
    return reading.questions


def _question_files(directory: Path) -> Iterator[Path]:
    for path in directory.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(directory).parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            yield path


def _read_file(path: Path, name: str, reading: _Reading) -> None:
    """Add what one file holds to the reading: its questions, or what is wrong with it."""
    try:
        content, root = load(_decoded(path))
    except UnreadableYamlError as exc:
        reading.problems.append(f"{name}{exc}")
        return
    reading.problems.extend(f"{name}, {problem}" for problem in repeated_keys(root))

    module = None
    try:
        module = _File.model_validate(content).module
    except ValidationError as exc:
        reading.problems.extend(_explain(error, name, root) for error in exc.errors(include_url=False))
    questions = content.get("questions") if isinstance(content, dict) else None
    if not isinstance(questions, list):
        return
    for number, entry in enumerate(questions):
        loc = ("questions", number)
        given_id = entry.get("id") if isinstance(entry, dict) else None
        if module is not None and isinstance(given_id, str):
            line = line_of(node_at(root, (*loc, "id"))[0])
            reading.places[module, given_id].append(f"{name}, line {line}")
        try:
            question = _Question.model_validate(entry)
        except ValidationError as exc:
            label = f'"{given_id}"' if isinstance(given_id, str) and given_id.strip() else str(number + 1)
            reading.problems.extend(
                _explain(error, name, root, under=loc, subject=f"question {label}")
                for error in exc.errors(include_url=False)
            )
        else:
            reading.questions.append(question.as_published(module or ""))


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # Windows editors put a mark before the text
    except OSError as exc:
        raise UnreadableYamlError(f" cannot be read ({exc.strerror}).") from exc
    except UnicodeDecodeError as exc:
        raise UnreadableYamlError(" is not UTF-8; save it with that encoding.") from exc


def _explain(
    error: ErrorDetails,
    name: str,
    root: yaml.Node,
    *,
    under: tuple[str | int, ...] = (),
    subject: str = "the file",
) -> str:
    """Say in one sentence what is wrong with a field, and what to write instead."""
    loc = error["loc"]
    is_key = error["type"] in {"extra_forbidden", "invalid_key"}
    node, found = node_at(root, (*under, *loc))
    parts = [f"entry {part + 1}" if isinstance(part, int) else f'"{part}"' for part in loc]
    if is_key:
        parts[-1] = f'"{loc[-1]}"'
    subject += f": {', '.join(parts)}" if parts else ""
    model = _model_at(loc[:-1] if is_key else loc, inside_question=bool(under))
    return f"{name}, line {line_of(node)}: {subject} {_reason(error, node if found else None, model)}."


def _model_at(loc: tuple[str | int, ...], *, inside_question: bool) -> type[_Entry]:
    match loc:
        case ("scale", *_) if inside_question:
            return _Scale
        case ("dimensions", *_) if inside_question:
            return _Dimension
        case _:
            return _Question if inside_question else _File


def _reason(error: ErrorDetails, node: yaml.Node | None, model: type[_Entry]) -> str:
    expected_fields = f"expected {', '.join(model.model_fields)}"
    match error["type"]:
        case "value_error":
            reason = str(error["msg"]).removeprefix("Value error, ")
        case "missing":
            reason = "is missing"
        case "extra_forbidden":
            alike = difflib.get_close_matches(str(error["loc"][-1]), model.model_fields, n=1)
            hint = f'perhaps "{alike[0]}" is meant' if alike else expected_fields
            reason = f"is not a field here; {hint}"
        case "invalid_key":
            reason = f"is a key that YAML does not read as text; {expected_fields}"
        case "too_short":
            reason = "has no entry; expected at least one"
        case "string_type":
            reason = f"{as_read(node)}; expected text{quote_hint(node)}"
        case "float_type" | "finite_number":
            reason = f"{as_read(node)}; expected a plain number, such as 1 or 5"
        case "list_type":
            reason = f"{as_read(node)}; expected a list, each entry after a dash"
        case "model_type":
            reason = f"{as_read(node)}; {expected_fields}"
        case other:
            reason = f"is wrong ({other}: {error['msg']})"
    return reason
