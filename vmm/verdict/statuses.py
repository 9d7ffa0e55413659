"""The exit statuses: the only place that says which there are.

They are the same for every command. The README's table, and the scripts that end with one of them,
are held against this module by a test.
"""

PASSED = 0
"""All that ran passed, or is known."""

DIFFERS = 1
"""The kernel differs from the model, or refused what every VMM needs, or complained."""

USAGE = 2
"""The arguments, or a file, cannot be used; nothing was executed."""

INCONCLUSIVE = 3
"""No verdict: hung, died, interrupted, unknown to the model, or the host failed."""

NOTHING_RAN = 4
"""The host lacks, by its own word, what is needed to run anything."""

TOO_FEW_RAN = 5
"""Nothing is wrong, but fewer scenarios ran than ``--require-run`` asks for."""

INTERNAL_ERROR = 70
"""An error of this program, which says nothing about the kernel."""

ALL = frozenset((PASSED, DIFFERS, USAGE, INCONCLUSIVE, NOTHING_RAN, TOO_FEW_RAN, INTERNAL_ERROR))
"""What a command ends with: another status is that of a process which did not get that far."""
