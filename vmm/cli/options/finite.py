"""Numbers that make a time: none is infinite, or more than a clock can hold."""

import math
from typing import Any

import click

_MOST = 1e6


class FiniteRange(click.FloatRange):
    """A `click.FloatRange` without nan, infinity and what is beyond all use."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number) or number > _MOST:
            self.fail(f"{number:g} is not in the range x<={_MOST:,.0f}.", param, ctx)
        return number
