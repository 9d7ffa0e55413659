"""A set of gfns, kept as ranges, is the set that it says it is."""

import random

from vmm.verdict.gfnset import GfnSet

_GFNS = 40


def gfns(ranges: list[range]) -> set[int]:
    return {gfn for each in ranges for gfn in each}


def test_pages_are_those_of_a_set_of_gfns() -> None:
    dice = random.Random(1)
    pages, expected = GfnSet(), set[int]()
    for _ in range(2000):
        first = dice.randrange(_GFNS)
        some = range(first, first + dice.choice((0, 1, 1, 2, 3, 9)))
        assert pages.overlaps(some) == (not expected.isdisjoint(some))
        missing = pages.missing(some)
        assert gfns(missing) == {*some} - expected
        assert sum(map(len, missing)) == len(gfns(missing))
        if dice.random() < 0.5:
            pages.add(some)
            expected |= {*some}
        else:
            taken = pages.take(some)
            assert gfns(taken) == expected.intersection(some)
            assert sum(map(len, taken)) == len(gfns(taken))
            expected -= {*some}
    assert gfns(pages.take(range(2 * _GFNS))) == expected != set()


def test_a_range_may_be_longer_than_any_list() -> None:
    pages = GfnSet()
    pages.add(range(1, 1 << 70))
    assert pages.take(range(5, 6)) == [range(5, 6)]
    assert pages.missing(range(1 << 71)) == [
        range(1),
        range(5, 6),
        range(1 << 70, 1 << 71),
    ]
