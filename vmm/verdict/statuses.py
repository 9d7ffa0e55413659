"""The exit statuses of all commands, defined here only.

A test checks the README's table, and the scripts that end with one of these, against this module.
"""

PASSED = 0
"""All that ran passed, or is known."""

DIFFERS = 1
"""The kernel differs from the model, refused what every VMM needs, or complained."""

USAGE = 2
"""The arguments, or a file, cannot be used; nothing was executed."""

INCONCLUSIVE = 3
"""No verdict: hung, died, interrupted, unknown to the model, or the host failed."""

NOTHING_RAN = 4
"""The host itself says that it lacks what is needed to run anything."""

TOO_FEW_RAN = 5
"""Nothing is wrong, but fewer scenarios ran than ``--require-run`` asks for."""

INTERNAL_ERROR = 70
"""An error of this program, which says nothing about the kernel."""

ALL = frozenset((PASSED, DIFFERS, USAGE, INCONCLUSIVE, NOTHING_RAN, TOO_FEW_RAN, INTERNAL_ERROR))
"""What a command ends with; any other status is that of a process which did not get that far."""
