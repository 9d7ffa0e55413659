"""How many scenarios have which outcome, in words."""

_SEVERAL = {"differs": "differ", "passes now": "pass now"}


def counted_as(outcome: str, count: int) -> str:
    """Return a number of scenarios with an outcome: "1 differs", "22 differ", "3 passed"."""
    return f"{count} {_SEVERAL.get(outcome, outcome) if count > 1 else outcome}"
