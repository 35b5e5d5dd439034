"""The picture for the README: what ``make bench`` measured last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl

from benchmarks.contenders import QUEUES, TITLES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

OURS, THEIRS = "#1f6f8b", "#b8c4cc"
NEEDED = ("throughput", "pickup", "model")
_COALESCED, _OWN = "submit", "own transaction"


def _bars(
    axes: Axes,
    title: str,
    values: Mapping[str, float],
    ours: Sequence[str],
    form: str,
    *,
    scale: str = "linear",
) -> None:
    names = list(values)
    axes.barh(
        names, [values[name] for name in names], color=[OURS if name in ours else THEIRS for name in names]
    )
    axes.bar_label(axes.containers[0], fmt=form, padding=3, fontsize=8)  # type: ignore[arg-type]
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xscale(scale)
    axes.margins(x=0.25)
    axes.tick_params(axis="y", labelsize=8, length=0)
    axes.tick_params(axis="x", which="both", bottom=False, labelbottom=False)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)


def draw(results: Mapping[str, Any], path: Path) -> bool:
    """Draw three charts side by side.

    Args:
        results: As ``results.json`` holds them.
        path: Where the PNG goes.

    Returns:
        Whether the parts that it needs have been measured.
    """
    if not all(name in results for name in NEEDED):
        return False
    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415 - after the choice of a backend that needs no screen

    rates = results["throughput"]["answers_per_second"]
    pickups = {name: results["pickup"][name]["p50_ms"] for name in QUEUES}
    shares = {name: results["model"][name]["from_submit"] for name in QUEUES if name in results["model"]}
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    # By hand without any queue, which is quicker, is in the page's table.
    end_to_end = {TITLES[name]: rates[name] for name in QUEUES} | {
        f"ours, {_OWN}": rates["own transaction"],
        f"ours, {_COALESCED}": rates["coalesced"],
    }
    _bars(
        left,
        "End to end, answers/s (more is better)",
        dict(sorted(end_to_end.items(), key=lambda item: item[1])),
        (f"ours, {_OWN}", f"ours, {_COALESCED}"),
        "{:,.0f}",
    )
    waits = {TITLES[name]: took for name, took in pickups.items()} | {
        "ours": results["pickup"]["assessment-scoring"]["p50_ms"]
    }
    _bars(
        middle,
        "Pickup when idle, median ms (less is better; logarithmic)",
        dict(sorted(waits.items(), key=lambda item: -item[1])),
        ("ours",),
        "{:.1f}",
        scale="log",
    )
    busy = {TITLES[name]: 100 * share for name, share in shares.items()} | {
        "ours": 100 * results["model"]["fixed"]["from_submit"]
    }
    _bars(
        right,
        "2,000 slots in use, % (more is better)",
        dict(sorted(busy.items(), key=lambda item: item[1])),
        ("ours",),
        "{:.0f}",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True
