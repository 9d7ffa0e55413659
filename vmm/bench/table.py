"""Costs as lines of text."""

from collections.abc import Iterator, Sequence

from vmm.bench.measure import Cost, Point
from vmm.bench.result import Bench, Change, growth
from vmm.bench.setup import Setup

_HEAD = "work        slots  pages       us       middle half     C us  ratio"


def table(bench: Bench) -> Iterator[str]:
    """Yield the lines of a result: microseconds for one piece of work; then how it grows."""
    yield _HEAD
    for point in bench.points:
        yield _line(point)
    words = growth(bench.points)
    if words:
        yield ""
        yield from words


def _line(point: Point) -> str:
    setup, ours = point.setup, point.library
    left = f"{setup.work:10} {setup.slots:6} {setup.pages:6} {ours.median:8.2f} {_half(ours):>17}"
    if point.c is not None and point.ratio is not None:
        left += f" {point.c.median:8.2f} {point.ratio:6.2f}"
    return left + _rest(setup)


def _half(cost: Cost) -> str:
    return f"{cost.low:.2f}..{cost.high:.2f}"


def _rest(setup: Setup) -> str:
    vcpus = f"  {setup.vcpus} vCPUs" if setup.vcpus > 1 else ""
    return vcpus + ("  huge pages" if setup.huge else "")


def compared(found: Sequence[Change]) -> Iterator[str]:
    """Yield a line for each change beyond the noise, and one that counts the others."""
    beyond = [change for change in found if change.is_beyond_noise]
    for change in beyond:
        word = "slower" if change.factor > 1 else "quicker"
        factor = change.factor if change.factor > 1 else 1 / change.factor
        setup = change.setup
        yield (
            f"{word} by {(factor - 1) * 100:.0f} %: {setup.work} with {setup.slots} slots of "
            f"{setup.pages} pages{_rest(setup)}: {change.before_us:.2f} -> {change.after_us:.2f} us"
        )
    rest = len(found) - len(beyond)
    yield f"{rest} of {len(found)} measurements did not change beyond the noise"
