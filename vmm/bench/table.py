"""Costs as lines of text."""

from collections.abc import Iterator, Sequence

from vmm.bench.measure import Cost, Point
from vmm.bench.result import SURE, Bench, CostChange, growth
from vmm.bench.setup import Setup

_HEAD = "work        slots       us       middle half     C us  ratio"


def table(bench: Bench) -> Iterator[str]:
    """Yield a result as lines: microseconds for one piece of work; then how it grows.

    They are at most 60 columns wide.
    """
    kind = None
    for point in bench.points:
        if _kind(point.setup) != kind:
            kind = _kind(point.setup)
            yield f"slots of {kind}"
            yield _HEAD
        yield _line(point)
    words = [*_together(bench.points), *growth(bench.points)]
    if words:
        yield ""
        yield from words


def _line(point: Point) -> str:
    setup, ours = point.setup, point.library
    left = f"{setup.work:10} {setup.slots:6} {_us(ours.median):>8} {_half(ours):>17}"
    if point.c is not None and point.ratio is not None:
        left += f" {_us(point.c.median):>8} {point.ratio:6.2f}"
    return left


def _together(points: Sequence[Point]) -> Iterator[str]:
    """Yield what creating and deleting a slot costs relative to C."""
    for each in points:
        if each.setup.work == "both" and each.ratio is not None:
            slots = f"{each.setup.slots} slot{'s' * (each.setup.slots != 1)}"
            yield f"create and delete, with {slots}: {each.ratio:.2f} times C"


def _half(cost: Cost) -> str:
    return f"{_us(cost.low)}..{_us(cost.high)}"


def _us(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:.0f}"


def _kind(setup: Setup) -> str:
    pages = "1 page" if setup.pages == 1 else f"{setup.pages} pages"
    return pages + _rest(setup)


def _rest(setup: Setup) -> str:
    vcpus = f", {setup.vcpus} vCPUs" if setup.vcpus > 1 else ""
    return vcpus + (", huge pages" if setup.huge else "")


def compared(found: Sequence[CostChange]) -> Iterator[str]:
    """Yield a line for each change beyond the noise, and one that counts the others."""
    beyond = [change for change in found if change.is_beyond_noise]
    for change in beyond:
        word = "slower" if change.factor > 1 else "quicker"
        setup = change.setup
        slots = "1 slot" if setup.slots == 1 else f"{setup.slots} slots"
        yield (
            f"{word} by {abs(change.factor - 1) * 100:.0f} %: {setup.work} with {slots} of "
            f"{setup.pages} pages{_rest(setup)}: {change.before_us:.2f} -> {change.after_us:.2f} us"
        )
    yield f"{len(beyond)} of {len(found)} measurements changed beyond the noise"
    yield from _of_the_cpu([change.cpu_factor for change in found])


def _of_the_cpu(factors: Sequence[float]) -> Iterator[str]:
    """Yield a line if the CPU itself was slower or quicker than for the older result."""
    for factor, word in ((max(factors, default=1), "slower"), (min(factors, default=1), "quicker")):
        if factor >= SURE if word == "slower" else factor <= 1 / SURE:
            yield (
                f"the CPU itself was up to {abs(factor - 1) * 100:.0f} % {word}: so much of a "
                "change is not counted"
            )


def elsewhere(before: Bench, after: Bench) -> Iterator[str]:
    """Yield a line if the older result is from another kernel, backend or CPU."""
    then, now = (f"Linux {b.kernel}, {b.backend}, {b.processor}" for b in (before, after))
    if then != now:
        yield f"compared with {then}"
