"""The base class of commands."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click

from vmm.host.signals import release


class Command(click.Command):
    """A command after which no result of an earlier run is left, however early it ends."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; from here on signals are no longer blocked."""
        with self.never_stale(ctx):
            release()
            return super().invoke(ctx)

    def never_stale(self, ctx: click.Context) -> AbstractContextManager[object]:
        """Return a guard against taking an old result for this run's: see `unfinished`."""
        return nullcontext()
