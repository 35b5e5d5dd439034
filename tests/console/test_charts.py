from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.http import charts, wording

NUMBERS = st.floats(0, 1e9, allow_nan=False)


def an_hour(**changes: Any) -> dict[str, Any]:
    """What storage tells of an hour in which nothing happened."""
    start = datetime(2030, 1, 1, 11, 1, tzinfo=UTC)
    minutes = [
        {
            "starts_at": start + timedelta(minutes=number),
            "answers": 0,
            "scores": 0,
            "pickup_seconds": None,
            "scoring_seconds": None,
        }
        for number in range(60)
    ]
    hour = {"answers": 0, "scores": 0, "pickup_seconds": None, "scoring_seconds": None}
    return {"minutes": minutes, "hour": hour, "is_estimated": False, "is_sample": False} | changes


def heights(path: str) -> list[float]:
    """The heights to which a path of bars goes up."""
    return [charts.HEIGHT - float(height) for height in re.findall(r"V([\d.]+)h", path)]


@given(NUMBERS)
def test_an_axis_reaches_just_above(value: float) -> None:
    """Never below what is drawn, and never more than twice as high."""
    top = charts.ceiling(value)

    assert top >= value * 0.999
    assert value < charts.SMALLEST or top <= 2.01 * value


@given(st.lists(NUMBERS, min_size=1, max_size=60))
def test_bars_are_as_high_as_their_values(values: list[float]) -> None:
    """In proportion, inside the picture, none for nothing."""
    top = charts.ceiling(max(values))
    drawn = heights(charts.bars(values, top))

    expected = [value / top * charts.HEIGHT for value in values if value > 0]
    assert len(drawn) == len(expected)
    assert drawn == pytest.approx(expected, abs=0.1)


@given(st.lists(NUMBERS | st.none(), min_size=1, max_size=60))
def test_a_line_breaks_off_where_nothing_is_known(values: list[float | None]) -> None:
    """It never invents a value between two; each value is a point, also a lonely one."""
    path = charts.line(values, 1e9)

    assert len(re.findall("[ML]", path)) == sum(value is not None for value in values)
    begins = sum(
        value is not None and (number == 0 or values[number - 1] is None)
        for number, value in enumerate(values)
    )
    assert path.count("M") == begins


def test_an_empty_hour_is_drawn_and_said() -> None:
    """With axes, a sentence and sixty lines of a table."""
    hour = an_hour()
    drawn = charts.throughput(hour), charts.times(hour, "pickup_seconds", "Pickup", "How long.")

    for chart in drawn:
        assert chart.is_empty
        assert len(chart.rows) == 60
        assert chart.times == ("11:01", "11:31", "12:00")
    assert drawn[1].description == "How long. Nothing within the last hour."


def test_a_picture_says_in_words_what_it_shows() -> None:
    """For who cannot see it: its description has the figures, its table all of them."""
    hour = an_hour()
    hour["minutes"][3] |= {"answers": 7, "scores": 5, "pickup_seconds": {"p50": 0.01, "p95": 0.2, "p99": 3.0}}
    hour["hour"] = {"answers": 7, "scores": 5, "pickup_seconds": {"p50": 0.01, "p95": 0.2, "p99": 3.0}}

    rates, times = charts.throughput(hour), charts.times(hour, "pickup_seconds", "Pickup", "How long.")

    assert "7 answers came and 5 scores were written" in rates.description
    assert [series.figure for series in rates.series] == ["5/h", "7/h"]
    assert rates.top == "8/min", "the axis has another unit than the sums beside it"
    assert rates.rows[3] == ["11:04", "7", "5"]
    assert times.description == "How long. Over the last hour: p50 10 ms, p95 200 ms, p99 3.0 s."
    assert times.rows[3] == ["11:04", "10 ms", "200 ms", "3.0 s"]
    assert times.rows[4] == ["11:05", wording.NOTHING, wording.NOTHING, wording.NOTHING]


def test_the_minute_that_is_not_over_is_no_fall() -> None:
    """The line of answers ends with the last whole minute; the bar of scores grows with the minute."""
    hour = an_hour()
    for minute in hour["minutes"]:
        minute |= {"answers": 10, "scores": 10}

    bars, line = charts.throughput(hour).series

    assert len(re.findall("[ML]", line.path)) == 59
    assert len(heights(bars.path)) == 60


def test_a_spread_stays_on_its_scale() -> None:
    """Its mean too, whatever a foreign scorer has written."""
    question = {"question_id": "q", "module_slug": "m", "looked_at": 3, "scale_min": 1.0, "scale_max": 5.0}
    drawn = charts.spread(question | {"bins": [1] + [0] * 8 + [2], "mean": 99.0})

    assert drawn.mean_at == drawn.width
    assert drawn.description == "Scores of m / q: 1 to 1.4: 1; 4.6 to 5: 2."
    assert heights(drawn.path) == [50, 100]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, wording.NOTHING),
        (0.0, "0.0 ms"),
        (0.0004, "0.4 ms"),
        (0.00096, "1 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (86_399, "23 h 59 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations_in_the_unit_that_fits(seconds: float | None, said: str) -> None:
    """Rounded into the next unit rather than to sixty of one."""
    assert wording.duration(seconds) == said


def test_other_words() -> None:
    """Numbers with their thousands, money with what shows something, moments in UTC."""
    assert [wording.count(number) for number in (0, 9_999, 1_234_567, 98_765_432)] == [
        "0", "9,999", "1.23 M", "98.77 M",
    ]  # fmt: skip
    assert [wording.money(dollars) for dollars in (None, 0.0, 0.00042, 0.01, 1234.5)] == [
        wording.NOTHING, "$0.00", "$0.00042", "$0.01", "$1,234.50",
    ]  # fmt: skip
    assert wording.moment(datetime(9999, 12, 31, tzinfo=UTC)) == wording.NOTHING
    assert wording.answers(1) == "1 answer"
