"""What all commands have in common."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click

from vmm.host.signals import release


class Command(click.Command):
    """A command that no old result outlives, however early it ends."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; signals that have waited for it come now."""
        with self.never_stale(ctx):
            release()
            return super().invoke(ctx)

    def never_stale(self, ctx: click.Context) -> AbstractContextManager[object]:
        """Return what keeps old results from being taken for this run's: see `unfinished`."""
        return nullcontext()
