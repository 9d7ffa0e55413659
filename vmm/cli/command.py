"""The base classes of commands."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click
from click.core import augment_usage_errors

from vmm.cli.output.unfinished import STDOUT, Early, never_stale, remove, written_files
from vmm.host.signals import release


class Command(click.Command):
    """A command after which no result of an earlier run is left, however early it ends.

    Its usage errors name it, wherever they are found.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments of the command."""
        with augment_usage_errors(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; from here on signals are no longer blocked."""
        with augment_usage_errors(ctx), self.never_stale(ctx):
            release()
            return super().invoke(ctx)

    def never_stale(self, ctx: click.Context) -> AbstractContextManager[object]:
        """Return a guard against taking an old result for this run's: see `unfinished`."""
        return nullcontext()


class Writing(Command):
    """A command that writes documents; if it fails, no file of an earlier run is left.

    ``documents`` are the names of the parameters that are such files.
    """

    def __init__(self, *args: Any, documents: tuple[str, ...], **options: Any) -> None:
        super().__init__(*args, **options)
        self.documents = documents

    def never_stale(self, ctx: click.Context) -> AbstractContextManager[object]:
        """Remove what an earlier run wrote, unless this command replaces it."""
        return never_stale(written_files(ctx, self.documents), remove)


class Printing(Command):
    """A command that prints a document with ``--json``; if it fails, the document says why.

    Its parameter is ``as_json``; `note_printed` must follow the document.
    """

    def never_stale(self, ctx: click.Context) -> AbstractContextManager[object]:
        """Print a document that says why there is none."""

        def tell(early: Early, _: Sequence[str]) -> None:
            from vmm.cli.output.printing import put
            from vmm.report import json

            put(json.text(self.early_document(early)))

        return never_stale([STDOUT] if ctx.params.get("as_json") else [], tell)

    def early_document(self, early: Early) -> dict[str, object]:
        """Return what is known when the command ends early."""
        from vmm.report import json

        why = early.why or early.traceback
        return {"format": json.FORMAT, "exit_status": early.status, "early": why}
