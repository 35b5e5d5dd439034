"""The contract: JSON frames that carry ids and nothing else."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from arq.jobs import DeserializationError, deserialize_job_raw
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from producers.contract import (
    MAX_IDS,
    QUEUE_NAME,
    ClaimResponses,
    Drain,
    Payload,
    ScoreResponses,
    deserialize,
    job_id,
    job_name,
    message,
    message_key,
    serialize,
)

IDS = st.integers(min_value=1, max_value=2**63 - 1)
ID_TUPLES = st.lists(IDS, min_size=1, max_size=20).map(tuple)
PAYLOADS: st.SearchStrategy[Payload] = st.one_of(
    st.builds(ScoreResponses, response_ids=ID_TUPLES),
    st.builds(ClaimResponses, claim_ids=ID_TUPLES),
    st.builds(Drain, lane=st.sampled_from(["live", "bulk", "suspect"])),
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)
GOOD_FRAME: dict[str, Any] = {"t": None, "f": "drain", "a": [], "k": {}, "et": 1}


@given(payload=PAYLOADS)
def test_a_message_is_json_that_arq_reads_back(payload: Payload) -> None:
    """What a producer writes is a plain JSON frame, and arq and the job read the same payload from it."""
    written = message(payload)

    frame = json.loads(written)
    name, arguments, keywords, _, _ = deserialize_job_raw(written, deserializer=deserialize)

    assert set(frame) == {"t", "f", "a", "k", "et"}
    assert (name, keywords) == (job_name(payload), {})
    assert type(payload).model_validate(*arguments) == payload


@given(payload=PAYLOADS)
def test_a_message_carries_only_names_and_numbers(payload: Payload) -> None:
    """A payload has no field that could hold text of a student."""
    (argument,) = json.loads(message(payload))["a"]

    for value in argument.values():
        if isinstance(value, list):
            assert all(isinstance(number, int) for number in value)
        else:
            assert value in {"live", "bulk", "suspect"}


@given(garbage=st.binary(max_size=200))
def test_bytes_that_are_no_frame_are_refused(garbage: bytes) -> None:
    """Whatever lies in Redis is read as a frame or refused with the one error that arq turns into a drop."""
    with pytest.raises(DeserializationError):
        deserialize_job_raw(garbage, deserializer=deserialize)


@given(value=JSON_VALUES)
def test_json_that_is_no_frame_is_refused(value: Any) -> None:
    """Any other JSON is refused too."""
    with pytest.raises(DeserializationError):
        deserialize_job_raw(json.dumps(value).encode(), deserializer=deserialize)


@given(field=st.sampled_from(sorted(GOOD_FRAME)), value=JSON_VALUES)
def test_a_field_of_a_frame_has_its_type_or_is_refused(field: str, value: Any) -> None:
    """A frame that is let through has the types that arq trusts it to have."""
    try:
        frame = deserialize(json.dumps(GOOD_FRAME | {field: value}).encode())
    except ValueError:
        return

    assert isinstance(frame["f"], str)
    assert isinstance(frame["a"], list)
    assert isinstance(frame["k"], dict)
    assert type(frame["et"]) is int
    assert 0 <= frame["et"] < 2**43
    assert frame["t"] is None or 0 <= frame["t"] <= 1000


@pytest.mark.parametrize("field", sorted(GOOD_FRAME))
def test_a_frame_without_a_field_is_refused(field: str) -> None:
    """Every field of the frame is needed."""
    with pytest.raises(ValidationError):
        deserialize(json.dumps({name: GOOD_FRAME[name] for name in GOOD_FRAME if name != field}).encode())


def test_a_frame_with_one_field_more_is_refused() -> None:
    """A frame of another contract is not half understood."""
    with pytest.raises(ValidationError):
        deserialize(json.dumps(GOOD_FRAME | {"x": 1}).encode())


class Bomb:
    """Shows whether a pickle was loaded."""

    went_off = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Bomb, "went_off", True))


def test_a_pickle_is_not_loaded() -> None:
    """A pickled payload is refused without running what it carries."""
    forged = pickle.dumps({"t": None, "f": "drain", "a": (Bomb(),), "k": {}, "et": 1})

    with pytest.raises(ValidationError):
        deserialize(forged)

    assert not Bomb.went_off


def test_what_is_no_json_is_not_written() -> None:
    """The serializer does not fall back to another format."""
    with pytest.raises(TypeError):
        serialize({"a": object()})


@pytest.mark.parametrize(
    "ids", [(), (0,), (-1,), (2**63,), ("1",), (1.0,), (True,), (None,), tuple(range(1, MAX_IDS + 2))]
)
@pytest.mark.parametrize(("kind", "field"), [(ScoreResponses, "response_ids"), (ClaimResponses, "claim_ids")])
def test_ids_are_positive_and_bounded(
    kind: type[ScoreResponses | ClaimResponses], field: str, ids: tuple[Any, ...]
) -> None:
    """A payload holds 1 to 500 ids, each one that PostgreSQL can have given."""
    with pytest.raises(ValidationError):
        kind.model_validate({field: ids})


@pytest.mark.parametrize("lane", ["", "LIVE", "other", None, 1])
def test_a_lane_is_one_of_three(lane: object) -> None:
    """A drain names a lane that exists."""
    with pytest.raises(ValidationError):
        Drain.model_validate({"lane": lane})


def test_payloads_take_no_other_fields() -> None:
    """Nothing can be smuggled along with the ids."""
    with pytest.raises(ValidationError):
        ScoreResponses.model_validate({"response_ids": (1,), "answer_text": "light"})


def test_messages_with_ids_have_ids_of_their_own() -> None:
    """Two messages never overwrite each other, even for the same response at the same moment."""
    payload = ScoreResponses(response_ids=(1,))

    assert len({job_id(payload) for _ in range(1000)}) == 1000


def test_a_drain_has_one_id_a_lane() -> None:
    """Drains of one lane are one message; drains of two lanes are two."""
    assert job_id(Drain(lane="live")) == job_id(Drain(lane="live"))
    assert len({job_id(Drain(lane=lane)) for lane in ("live", "bulk", "suspect")}) == 3


def test_older_messages_sort_before_younger_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis orders members of equal score by their bytes, so the time stands in front, at a fixed width."""
    times = iter([1_000_000, 999_000_000, 1_753_000_000_000_000_000, 4_000_000_000_000_000_000])
    monkeypatch.setattr("producers.contract.time.time_ns", lambda: next(times))

    ids = [job_id(ScoreResponses(response_ids=(1,))) for _ in range(4)]

    assert ids == sorted(ids)


def test_names_carry_the_version_of_the_contract() -> None:
    """A worker of another version never meets these messages."""
    assert QUEUE_NAME == "scoring:v1"
    assert job_id(Drain(lane="live")).startswith(QUEUE_NAME)
    assert message_key("x") == "arq:job:x"
