"""Options whose value is optional: ``--require-run [N]`` and ``--json [FILE]``."""

from collections.abc import Sequence

import click

from vmm.cli.command import Command
from vmm.cli.options.paths import FilePath
from vmm.verdict import statuses

_REQUIRE = "--require-run"
_JSON = "--json"
_STDOUT = "-"


class OptionalValues(Command):
    """A command with such options: a number of scenarios (default 1), a file (default stdout).

    The next argument is the value only if it can be one, since a scenario's name may follow
    instead. With ``--list`` a file must have a dot or a slash in its name.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Join each such option and its value to one argument."""
        joined: list[str] = []
        left = list(args)
        while left:
            arg = left.pop(0)
            if arg == "--":
                joined += (arg, *left)
                break
            value = _value(arg, left[:1], args)
            if value is None:
                joined.append(arg)
                continue
            joined.append(f"{arg}={value}")
            if left[:1] == [value]:
                left.pop(0)
        return super().parse_args(ctx, joined)


def _value(option: str, following: Sequence[str], args: Sequence[str]) -> str | None:
    """Return the value of such an option, given or default; None for any other argument."""
    after = following[0] if following else ""
    if option == _REQUIRE:
        return after if after.isdecimal() else "1"
    if option == _JSON:
        is_file = bool(after) and (after == _STDOUT or not after.startswith("-"))
        if is_file and "--list" in args:
            is_file = after == _STDOUT or "." in after or "/" in after
        return after if is_file else _STDOUT
    return None


require_run_option = click.option(
    _REQUIRE,
    "required",
    type=click.IntRange(0),
    default=0,
    show_default=False,
    metavar="[N]",
    help=f"Fail (status {statuses.TOO_FEW_RAN}) if fewer than N (or 1) scenarios run.",
)
"""The option; a `Command` gets ``required``, 0 if it is not given."""

FILE = FilePath(readable=False, allow_dash=True)
"""The name of an output file, as text: not checked here; shells complete it."""

json_option = click.option(
    _JSON,
    "json_file",
    type=FILE,
    metavar="[FILE]",
    help="Write the whole result (by default to stdout).",
)
"""The option; a `Command` gets ``json_file``, None if it is not given."""
