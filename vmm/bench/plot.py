"""Plots the costs against the number of slots. Needs matplotlib (the extra ``plot``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

from vmm.bench.measure import Point
from vmm.bench.result import Bench
from vmm.bench.setup import Work

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot(bench: Bench, file: IO[bytes], kind: str) -> None:
    """Write a picture as `svg` or `png`. Raises ImportError, OSError and ValueError."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    with mpl.rc_context():
        pyplot.rc("svg", fonttype="none", hashsalt="memslot-vmm")
        pyplot.rc("axes", grid=True)
        pyplot.rc("axes.spines", top=False, right=False)
        pyplot.rc("grid", alpha=0.3)
        works = list(dict.fromkeys(point.setup.work for point in bench.points))
        columns = min(len(works), 3)
        rows = -(-len(works) // columns)
        figure, axes = pyplot.subplots(
            rows, columns, figsize=(4 * columns, 3 * rows + 0.6), squeeze=False
        )
        for work, place in zip(works, axes.flat, strict=False):
            _draw(place, work, [p for p in bench.points if p.setup.work == work])
        for place in list(axes.flat)[len(works) :]:
            place.axis("off")
        figure.suptitle(f"Linux {bench.kernel}, {bench.backend}: costs by number of slots")
        figure.supxlabel("slots", fontsize="medium")
        figure.supylabel("microseconds", fontsize="medium")
        figure.tight_layout()
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(file, format=kind, dpi=144, metadata=metadata)
        pyplot.close(figure)


def _draw(axes: Axes, work: Work, points: Sequence[Point]) -> None:
    points = sorted(points, key=lambda point: point.setup.slots)
    for label, colour, costs in (
        ("library", "tab:blue", [p.library for p in points]),
        ("C", "tab:orange", [p.c for p in points]),
    ):
        known = [(p.setup.slots, c) for p, c in zip(points, costs, strict=True) if c is not None]
        if not known:
            continue
        x = [slots for slots, _ in known]
        middle = [cost.median for _, cost in known]
        axes.plot(x, middle, marker="o", markersize=3, color=colour, label=label)
        low, high = [cost.low for _, cost in known], [cost.high for _, cost in known]
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_title(work)
    axes.set_xscale("symlog", linthresh=1)
    every = sorted({point.setup.slots for point in points})
    axes.set_xticks(every, labels=[f"{slots:,}" for slots in every])
    axes.set_ylim(0, axes.get_ylim()[1] * 1.1)  # Room above, so that the legend hides no line.
    axes.legend(frameon=False, fontsize=8)
