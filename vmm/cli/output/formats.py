"""``--format``: the formats of a report, and where each goes."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from typing import IO, Any, Literal, assert_never, get_args

import click
from click.shell_completion import CompletionItem
from rich.console import Console

from vmm.cli.options.required import FILE, OptionalValues, json_option
from vmm.cli.output.console import console, console_of, print_lines, width_of
from vmm.cli.output.errors import usable
from vmm.cli.output.unfinished import (
    Early,
    never_stale,
    not_read,
    note_printed,
    remove,
    written_files,
)
from vmm.cli.output.writing import apart, written
from vmm.host.hostinfo import host_facts
from vmm.report.reporter import Reporter, Write, together
from vmm.report.text import Detail, Print, single_report
from vmm.scenario.features import Features
from vmm.verdict import statuses
from vmm.verdict.result import Run

Format = Literal["text", "ktap", "tap13", "junit", "json", "html"]
FORMATS: tuple[Format, ...] = get_args(Format)
_SHOW_STEPS = ("json", "html")
_STDOUT = "-"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A format, and the file that it goes to (``-``: standard output)."""

    name: Format
    file: str = _STDOUT


class _FormatParam(click.ParamType):  # type: ignore[type-arg]  # In older versions it takes none.
    name = "FORMAT[:FILE]"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Wanted:
        if isinstance(value, Wanted):
            return value
        word, colon, file = str(value).partition(":")
        name = next((each for each in FORMATS if each == word), None)
        if name is None:
            self.fail(f"{word!r} is not a format; there are {', '.join(FORMATS)}", param, ctx)
        if colon and not file:
            self.fail(f"{value!r}: the name of the file is missing", param, ctx)
        return Wanted(name, file or _STDOUT)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        if incomplete.partition(":")[0] in FORMATS and ":" in incomplete:
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(name) for name in FORMATS if name.startswith(incomplete)]


Text = Callable[[Print, int | None], Reporter]
"""Makes the text reporter, from a function that prints lines and the width to wrap at."""


@dataclass(frozen=True, slots=True)
class Requested:
    """The values of ``--format``, ``--json``, ``--html``, ``-v`` and ``-q``."""

    formats: tuple[Wanted, ...]
    json_file: str | None
    html_file: str | None
    detail: Detail

    def everything(self, *others: Path | None) -> tuple[Wanted, ...]:
        """Return the formats and their files; text on standard output is the default.

        Raises click.UsageError if two share a file, including the command's ``others``.
        """
        named: tuple[tuple[Format, str | None], ...]
        named = (("json", self.json_file), ("html", self.html_file))
        also = [Wanted(name, file) for name, file in named if file is not None]
        chosen = (*(self.formats or (Wanted("text"),)), *also)
        places = [each.file for each in chosen if each != Wanted("text") or self.formats]
        apart((*places, *(str(each) for each in others if each is not None)))
        return chosen

    def of_list(self) -> Wanted:
        """Return the one format of a list. Raises click.UsageError if there are several."""
        chosen = self.everything()
        if self.json_file is not None and not self.formats:
            chosen = chosen[1:]  # The default text.
        if len(chosen) != 1:
            raise click.UsageError("--list has one format")
        return chosen[0]


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of reports to a command, which gets ``requested``."""

    @click.option(
        "--format",
        "formats",
        type=_FormatParam(),
        multiple=True,
        metavar="FORMAT[:FILE]",
        help=f"Report as {', '.join(FORMATS[:-1])} or {FORMATS[-1]}; several go to a file each.",
    )
    @json_option
    @click.option(
        "--html",
        "html_file",
        type=FILE,
        metavar="FILE",
        help="Write the whole result as a page.",
    )
    @click.option(
        "-v", "--verbose", is_flag=True, help="Show every scenario; `run` and `judge`: its rules."
    )
    @click.option("-q", "--quiet", is_flag=True, help="A line for each fault, and the counts.")
    @wraps(command)
    def reported(
        *args: Any,
        formats: tuple[Wanted, ...],
        json_file: str | None,
        html_file: str | None,
        verbose: bool,
        quiet: bool,
        **options: Any,
    ) -> None:
        if verbose and quiet:
            raise click.UsageError("--verbose and --quiet exclude each other")
        detail = Detail.VERBOSE if verbose else Detail.QUIET if quiet else Detail.USUAL
        command(*args, requested=Requested(formats, json_file, html_file, detail), **options)

    return reported


_OPTIONS = ("formats", "json_file", "html_file")


class Reporting(OptionalValues):
    """A command with the options of `reporting`, which writes to each file why it ended early.

    ``histories`` are the names of the parameters that are files of histories which it writes.
    """

    def __init__(self, *args: Any, histories: tuple[str, ...] = (), **options: Any) -> None:
        super().__init__(*args, **options)
        self.histories = histories

    def never_stale(self, ctx: click.Context) -> AbstractContextManager[object]:
        """If the command fails, write a run of nothing to the files that were asked for.

        A file of histories that an earlier run wrote is removed.
        """
        wanted = wanted_of(ctx)
        files = [each.file for each in wanted]
        if ctx.params.get("only_list"):
            return never_stale(files, remove)
        histories = written_files(ctx, self.histories)

        def tell(early: Early, left: Sequence[str]) -> None:
            remove(early, [file for file in left if file in histories])
            write_early(wanted, early, [file for file in left if file not in histories])

        return never_stale([*files, *histories], tell)


def wanted_of(ctx: click.Context) -> list[Wanted]:
    """Return what a command with the options of `reporting` writes, besides text for people."""
    formats, json_file, html_file = (ctx.params.get(name) for name in _OPTIONS)
    wanted = Requested(formats or (), json_file, html_file, Detail.USUAL).everything()
    others = [value for name, value in ctx.params.items() if name not in _OPTIONS]
    spared = set(not_read([each.file for each in wanted], others))
    return [each for each in wanted if each != Wanted("text") and each.file in spared]


def write_early(wanted: Sequence[Wanted], early: Early, files: Sequence[str]) -> None:
    """Write a run of nothing, with the reason, to some of the files that were asked for."""
    run = Run((), Features(), host_facts())
    match early.status:
        case statuses.INTERNAL_ERROR:
            run = replace(run, error=early.traceback or early.why)
        case statuses.NOTHING_RAN:
            run = replace(run, obstacle=early.why)
        case statuses.TOO_FEW_RAN:
            run = replace(run, obstacle=early.why, required=1)
        case _:
            run = replace(run, early=early.why)
    with outputs([each for each in wanted if each.file in files], single_report) as reports:
        reports.reporter.begin((), run.host)
        reports.reporter.end(run)


@dataclass(frozen=True, slots=True)
class Outputs:
    """The reports of a run; ``to`` is the console for people.

    ``show_steps`` says whether any of the formats shows the steps.
    """

    reporter: Reporter
    to: Console
    show_steps: bool


@contextmanager
def outputs(chosen: Sequence[Wanted], text: Text, *, runs: bool = True) -> Iterator[Outputs]:
    """Open all files before anything runs, and yield a reporter to all formats.

    The files appear when the block ends without an error. If something ``runs``, old files are
    removed when the reporter begins, so that nobody takes an old result for this one; before that,
    while arguments and files may still prove unusable, they stay. Raises Unusable.
    """
    documents = [each for each in chosen if each.name != "text"]
    taken = any(each.file == _STDOUT for each in documents)
    to = console(stderr=taken)
    with ExitStack() as stack:
        olds = [each.file for each in chosen if each.file != _STDOUT] if runs else []
        reporters: list[Reporter] = [Reporter(lambda *_: _removed(olds), _nothing, _nothing)]
        for each in chosen:
            if each == Wanted("text"):
                reporters.append(_text(to, text))
                continue
            stream = _opened(stack, each.file)
            if each.name == "text":
                reporters.append(_text(console_of(stream), text))
            else:
                reporters.append(_document(each.name)(partial(_write, stream)))
        show_steps = any(each.name in _SHOW_STEPS for each in chosen)
        if taken:
            reporters.append(Reporter(_nothing, _nothing, lambda _: note_printed()))
        yield Outputs(together(reporters), to, show_steps)


def _opened(stack: ExitStack, file: str) -> IO[str]:
    if file == _STDOUT:
        return sys.stdout
    stream: IO[str] = stack.enter_context(written(Path(file)))
    return stream


def _removed(files: Sequence[str]) -> None:
    """Remove those of these files that exist. Raises Unusable."""
    for file in files:
        if os.path.isfile(file):
            with usable(file):
                Path(file).resolve().unlink()


def _nothing(*_: object) -> None:
    return None


def _write(stream: IO[str], text: str) -> None:
    stream.write(text)
    stream.flush()


def _text(to: Console, text: Text) -> Reporter:
    return text(partial(print_lines, to), width_of(to))


def _document(name: Format) -> Callable[[Write], Reporter]:
    """Return what makes the reporter of a format; its libraries are imported only then."""
    match name:
        case "ktap":
            from vmm.report.ktap import ktap_report as made
        case "tap13":
            from vmm.report.tap13 import tap13_report as made
        case "junit":
            from vmm.report.junit import junit_report as made
        case "json":
            from vmm.report.json import json_report as made
        case "html":
            from vmm.report.html import html_report as made
        case "text":
            raise AssertionError("text is for people: see `_text`")
        case _:
            assert_never(name)
    return made
