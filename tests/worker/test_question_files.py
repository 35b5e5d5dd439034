"""Question files: what an educator may write, and the sentence that each mistake gets."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest

from storage.limits import MAX_KEY_CHARS, MAX_QUESTION_CHARS
from storage.validation import checked_question
from worker.question_files import QuestionFileError, read_question_files

MINIMAL = """\
id: why
question: Why?
rubric: Because.
"""


def file_with(*questions: str, module: str = "plants") -> str:
    entries = "".join("  -" + indent(dedent(question), "    ")[3:] for question in questions)
    return f"module: {module}\nquestions:\n{entries}"


def write(directory: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return directory


def read(directory: Path, **files: str) -> list[dict[str, Any]]:
    return read_question_files(write(directory, {f"{name}.yaml": text for name, text in files.items()}))


def problems(directory: Path, text: str) -> tuple[str, ...]:
    """What is refused about a folder that holds one file, ``a.yaml``."""
    with pytest.raises(QuestionFileError) as refused:
        read(directory, a=text)
    return refused.value.problems


def test_a_full_question_becomes_what_storage_publishes(tmp_path: Path) -> None:
    """Every field arrives under the name that storage takes, and storage accepts it."""
    text = file_with(
        """\
        id: why-leaves-are-green
        question: Why are leaves green?
        rubric: |
          5: light
          1: nothing
        scale: {min: 0, max: 10.5}
        dimensions:
          - name: accuracy
            description: Facts are right
          - name: reasons
        reference_answer: Green light is reflected.
        learning_outcome: Explains colour
        """
    )

    (question,) = read(tmp_path, a=text)

    assert question == {
        "module_slug": "plants",
        "question_id": "why-leaves-are-green",
        "question_text": "Why are leaves green?",
        "rubric": "5: light\n1: nothing",
        "scale_min": 0.0,
        "scale_max": 10.5,
        "dimensions": [
            {"name": "accuracy", "description": "Facts are right"},
            {"name": "reasons", "description": ""},
        ],
        "reference_answer": "Green light is reflected.",
        "learning_outcome_name": "Explains colour",
    }
    assert checked_question(question)["scale_max"] == 10.5


def test_what_is_left_out_is_left_to_storage(tmp_path: Path) -> None:
    """The scale is 1 to 5; empty fields count as left out."""
    (question,) = read(tmp_path, a=file_with(MINIMAL + "reference_answer:\nlearning_outcome: ~\n"))

    assert question == {
        "module_slug": "plants",
        "question_id": "why",
        "question_text": "Why?",
        "rubric": "Because.",
        "scale_min": 1.0,
        "scale_max": 5.0,
    }


def test_files_are_found_at_any_depth_and_read_in_order(tmp_path: Path) -> None:
    """Both suffixes, any case, folders in folders, sorted; hidden and other files are none of ours."""
    names = ["b.yaml", "a/z.yml", "a/b/C.YAML"]
    write(
        tmp_path,
        {name: file_with(MINIMAL, module=f"m{number}") for number, name in enumerate(names)}
        | {".github/ci.yml": "jobs: []", ".draft.yaml": "x", "notes.txt": "x", "odd.yaml/readme.md": "x"},
    )

    slugs = [question["module_slug"] for question in read_question_files(tmp_path)]

    assert slugs == ["m2", "m1", "m0"]


def test_one_module_may_be_spread_over_files(tmp_path: Path) -> None:
    """A module may be one file or several."""
    questions = read(tmp_path, a=file_with(MINIMAL), b=file_with(MINIMAL.replace("why", "how")))

    assert [question["question_id"] for question in questions] == ["why", "how"]


def test_the_shape_of_the_text_does_not_make_another_question(tmp_path: Path) -> None:
    """A mark at the start, Windows line ends and a last line break change nothing."""
    block = file_with("id: why\nquestion: Why?\nrubric: |\n  One.\n  Two.\n")
    kept = read(write(tmp_path / "1", {}), a=block)
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "a.yaml").write_bytes(
        b"\xef\xbb\xbf" + block.replace("|", "|-").replace("\n", "\r\n").encode()
    )

    assert read_question_files(tmp_path / "2") == kept


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ("42", "a number"),
        ("042", "a number"),
        ("1.10", "a number"),
        ("12:30", "a number"),
        ("yes", "true or false"),
        ("off", "true or false"),
        ("2024-01-31", "a date"),
        ("null", "nothing"),
    ],
)
def test_an_id_that_yaml_misreads_must_be_quoted(tmp_path: Path, written: str, read_as: str) -> None:
    """Nothing is converted back, since the number 34 does not say whether it was written 042."""
    (problem,) = problems(tmp_path, file_with(MINIMAL.replace("why", written, 1)))

    assert problem == (
        f'a.yaml, line 3: question 1: "id" is read as {read_as}; expected text, so quote it: "{written}".'
    )
    (question,) = read(tmp_path, a=file_with(MINIMAL.replace("why", f'"{written}"', 1)))
    assert question["question_id"] == written


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        (
            MINIMAL + "ruberic: x\n",
            'line 6: question "why": "ruberic" is not a field here; perhaps "rubric" is meant.',
        ),
        ("id: why\nquestion: Why?\n", 'line 3: question "why": "rubric" is missing.'),
        (
            MINIMAL + "scale: {min: 5, max: 1}\n",
            '"scale" is upside down: min is 5, max is 1; expected min below max.',
        ),
        (
            MINIMAL + "scale: {min: 5}\n",
            '"scale" is upside down: min is 5, max is 5; expected min below max.',
        ),
        (MINIMAL + "scale: 1:5\n", '"scale" is read as a number; expected min, max.'),
        (
            MINIMAL + 'scale: {max: "9"}\n',
            '"scale", "max" is the text "9"; expected a plain number, such as 1 or 5.',
        ),
        (MINIMAL + "scale: {max: .inf}\n", '"scale", "max" is read as a number; expected a plain number'),
        (MINIMAL + "scale: {max: yes}\n", '"scale", "max" is read as true or false; expected a plain number'),
        (MINIMAL + "scale: {mix: 1}\n", '"scale", "mix" is not a field here'),
        (
            MINIMAL + "dimensions: accuracy\n",
            '"dimensions" is the text "accuracy"; expected a list, each entry after',
        ),
        (
            MINIMAL + "dimensions: [accuracy]\n",
            '"dimensions", entry 1 is the text "accuracy"; expected name, descrip',
        ),
        (
            MINIMAL + "dimensions: [{name: on}]\n",
            '"dimensions", entry 1, "name" is read as true or false; expected te',
        ),
        (
            MINIMAL + "dimensions: [{name: a}, {name: A}]\n",
            '"dimensions" has "A" twice; expected a different name',
        ),
        (
            'id: why\nquestion: "  "\nrubric: x\n',
            'line 4: question "why": "question" is blank; expected text.',
        ),
        ("id: why\nquestion:\nrubric: x\n", '"question" is empty; expected text.'),
        ('id: why\nquestion: "\\u200b"\nrubric: x\n', '"question" is blank'),
        ('id: why\nquestion: "a\\0b"\nrubric: x\n', '"question" contains a NUL character'),
        ('id: why\nquestion: "\\ud800"\nrubric: x\n', '"question" contains half of a surrogate pair'),
        (
            "id: why\nquestion: [Why]\nrubric: x\n",
            '"question" is a list; expected text, so quote what begins with a bra',
        ),
        ("id: why\nquestion: {a: b}\nrubric: x\n", '"question" is a mapping; expected text'),
        ("id: why\nquestion:\n  a: b\nrubric: x\n", '"question" is a mapping; expected text.'),
        ('id: " why"\nquestion: x\nrubric: x\n', 'question " why": "id" begins or ends with a space'),
        (
            'id: "w\\u200bhy"\nquestion: x\nrubric: x\n',
            '"id" contains a line break or an invisible character',
        ),
        (
            f"id: {'w' * (MAX_KEY_CHARS + 1)}\nquestion: x\nrubric: x\n",
            '"id" has 201 characters; expected at most 200.',
        ),
        (
            f"id: why\nquestion: {'w' * (MAX_QUESTION_CHARS + 1)}\nrubric: x\n",
            '"question" has 100,001 characters',
        ),
        (MINIMAL + "42: x\n", '"42" is a key that YAML does not read as text; expected id, question, rubric'),
        ("just text\n", 'question 1 is the text "just text"; expected id, question, rubric'),
    ],
)
def test_a_mistake_in_a_question_gets_a_sentence(tmp_path: Path, question: str, sentence: str) -> None:
    """The sentence names file, line, question and field, and says what was expected."""
    (problem,) = problems(tmp_path, file_with(question))

    assert problem.startswith("a.yaml, line ")
    assert sentence in problem
    assert problem.endswith(".")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "a.yaml is empty."),
        ("# only a comment\n", "a.yaml is empty."),
        ("- a\n", "a.yaml, line 1: the file is a list; expected module, questions."),
        (
            "module: m\nquestions: []\n",
            'a.yaml, line 2: the file: "questions" has no entry; expected at least one.',
        ),
        ("module: m\nquestions:\n", 'a.yaml, line 2: the file: "questions" is empty; expected a list'),
        ("module: m\n", 'a.yaml, line 1: the file: "questions" is missing.'),
        (file_with(MINIMAL, module="no"), 'a.yaml, line 1: the file: "module" is read as true or false'),
        (
            file_with(MINIMAL) + "modul: x\n",
            'a.yaml, line 6: the file: "modul" is not a field here; perhaps "module"',
        ),
        ("module: a\n---\nmodule: b\n", 'a.yaml, line 3: a second document begins after "---"'),
        (
            "module: a: b\n",
            "a.yaml, line 1: this is not valid YAML (mapping values are not allowed here); text with a",
        ),
        (
            "module:\n\tx: y\n",
            "a.yaml, line 2: this is not valid YAML (while scanning for the next token found",
        ),
        ("module: *bold* text\n", "a.yaml, line 1: this is not valid YAML ("),
        ("module: !important\n", "a.yaml, line 1: this is not valid YAML (could not determine a constructor"),
        (
            "module: a\x01b\n",
            "a.yaml: this is not valid YAML (special characters are not allowed); remove the control",
        ),
        (
            "module: 2024-02-31\n",
            'a.yaml, line 1: "2024-02-31" looks like a date or a number and is none; quote it.',
        ),
        ("module: !!int x\n", "a.yaml holds a value that does not fit the tag before it; quote it."),
        ("[" * 5000, "a.yaml is nested too deeply."),
        ("&a [*a]", "a.yaml, line 1: the file is a list; expected module, questions."),
    ],
)
def test_a_mistake_in_a_file_gets_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    """Whatever stands in the file, the educator gets a sentence and never a traceback."""
    (problem, *_) = problems(tmp_path, text)

    assert problem.startswith(sentence)
    assert problem.endswith(".")


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    """YAML forbids it and PyYAML keeps the last one silently, so that an edit of the first would do nothing."""
    twice = problems(tmp_path, file_with(MINIMAL + "rubric: Another one.\n"))

    assert twice == ('a.yaml, line 6: "rubric" already stands in line 5; keep one.',)
    assert problems(tmp_path, file_with(MINIMAL + "scale: {max: 9, max: 8}\n")) == (
        'a.yaml, line 6: "max" already stands in line 6; keep one.',
    )


def test_shared_parts_may_be_named_once(tmp_path: Path) -> None:
    """Anchors and aliases work: a list of dimensions need not be repeated in every question. Merges do not."""
    first = MINIMAL + "dimensions: &shared\n  - name: accuracy\n"
    second = MINIMAL.replace("why", "how") + "dimensions: *shared\n"
    third = "<<: {rubric: Because., question: Why then}\nid: when\n"

    questions = read(tmp_path, a=file_with(first, second))

    assert questions[0]["dimensions"] == questions[1]["dimensions"]
    (problem,) = problems(tmp_path, file_with(third))
    assert '"<<" is not supported' in problem


def test_one_question_in_two_files_names_both(tmp_path: Path) -> None:
    """Which of the two would be published would depend on the order of files; so neither is."""
    write(
        tmp_path,
        {
            "a.yaml": file_with(MINIMAL),
            "deep/b.yml": file_with(MINIMAL),
            "c.yaml": file_with(MINIMAL, module="x"),
        },
    )

    with pytest.raises(QuestionFileError) as refused:
        read_question_files(tmp_path)

    (problem,) = refused.value.problems
    assert problem == (
        'a.yaml, line 3 and deep/b.yml, line 3: question "why" of module "plants" is given more than once; '
        "keep one of them."
    )


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    """One look at the message is enough to mend everything: no file and no question hides another."""
    broken = file_with("id: yes\nquestion: x\nrubric: x\n", "id: b\nrubric: x\n")
    write(
        tmp_path, {"a.yaml": broken, "b.yaml": "", "c.yaml": file_with(MINIMAL), "d.yaml": file_with(MINIMAL)}
    )

    with pytest.raises(
        QuestionFileError, match=r"No question was read, because the files have 4 problems:\n- a"
    ) as refused:
        read_question_files(tmp_path)

    assert [problem.split(",")[0].split(" is ")[0] for problem in refused.value.problems] == [
        "a.yaml",
        "a.yaml",
        "b.yaml",
        "c.yaml",
    ]


def test_a_folder_without_question_files_is_refused(tmp_path: Path) -> None:
    """A wrong path must not look like a module whose questions are all gone."""
    with pytest.raises(QuestionFileError, match="holds no question file"):
        read_question_files(tmp_path)
    with pytest.raises(QuestionFileError, match="is not a folder"):
        read_question_files(tmp_path / "missing")


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """A file saved as Latin-1 would turn letters into others."""
    (tmp_path / "a.yaml").write_bytes("module: Bäume\n".encode("latin-1"))

    with pytest.raises(QuestionFileError, match=r"a\.yaml is not UTF-8"):
        read_question_files(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The other files do not stand in for it."""
    write(tmp_path, {"a.yaml": file_with(MINIMAL)})
    (tmp_path / "a.yaml").chmod(0)

    with pytest.raises(QuestionFileError, match=r"a\.yaml cannot be read"):
        read_question_files(tmp_path)


def test_the_demo_questions_are_accepted_by_storage() -> None:
    """What the demo publishes is valid, and each question can be scored without a model."""
    questions = read_question_files(Path(__file__).parents[2] / "demo" / "questions")

    assert len(questions) >= 6
    for question in questions:
        assert checked_question(question)["dimensions"]
        assert question["reference_answer"]
        assert question["learning_outcome_name"]
