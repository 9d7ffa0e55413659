"""Which of our files one is, by how it begins: for those that are given where another is wanted."""

import re

from vmm.scenario.operations import Scenario

HISTORY_BEGINS = b'{"type":"history"'
BEGINNING_BYTES = 200
"""So much of a file shows what it is."""

SCENARIO, HISTORY, RESULT, COSTS = "a scenario", "a history", "a result", "a benchmark"

_FIELDS = "|".join(Scenario.__struct_fields__).encode()
_KINDS = (
    (HISTORY, rb'\{"type":\s*"history"', "`vmm judge` and `vmm repro` take it"),
    (RESULT, rb'\{\s*"format":\s*\d+,\s*"status":', "`vmm report` draws it"),
    (COSTS, rb'\{\s*"kernel":', "`vmm bench --against` takes it"),
    (SCENARIO, rb'\{\s*("format":\s*\d+,\s*)?"(%b)":' % _FIELDS, "`vmm run` takes it"),
)
_COMPILED = [(kind, re.compile(pattern), taker) for kind, pattern, taker in _KINDS]


def other_than(wanted: str, beginning: bytes) -> str:
    """Say what a file is that begins so, and what takes it; "" if it is none of ours, or wanted."""
    for kind, pattern, taker in _COMPILED:
        if pattern.match(beginning):
            return f"{kind}, not {wanted}: {taker}" if kind != wanted else ""
    return ""
