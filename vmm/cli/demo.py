"""``vmm demo``: show what a memslot is, on this kernel."""

import io
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from vmm.cli.command import Writing
from vmm.cli.options.paths import FilePath
from vmm.cli.output.console import console, print_lines, width_of
from vmm.cli.output.errors import usable
from vmm.cli.output.writing import written
from vmm.cli.running.host import USUAL, Host, look_at_host, require_usable
from vmm.report import terminal
from vmm.report.demo import WIDTH, in_ascii, opening, scene_lines
from vmm.report.story import chapters, scenes, story, structure_of
from vmm.scenario.codec import history_lines, read_history
from vmm.scenario.history import History
from vmm.verdict.judge import Status
from vmm.verdict.result import Checked, judged

CHAPTERS = len(chapters(USUAL))


RECORDED = Path(__file__).parents[1] / "report" / "demo.jsonl"
"""A recorded run, for hosts without KVM; ``vmm demo --record`` writes it."""


@click.command(cls=Writing, documents=("svg", "record"))
@click.argument("numbers", nargs=-1, type=click.IntRange(1, CHAPTERS), metavar="[CHAPTER]...")
@click.option("--svg", type=FilePath(path_type=Path, dir_okay=False), hidden=True)
@click.option("--record", type=FilePath(path_type=Path, dir_okay=False), hidden=True)
@click.pass_context
def demo(
    ctx: click.Context, numbers: tuple[int, ...], svg: Path | None, record: Path | None
) -> None:
    """Show what a memslot is, step by step, on this kernel.

    The story is always run whole; with the numbers of chapters only those are shown. Where there
    is no /dev/kvm, a recorded run is shown.
    """
    host = look_at_host()
    if host.trouble is not None:
        require_usable(host)
    history = recorded() if host.why_not else _run(host)
    if record is not None:
        with usable(record):
            record.write_bytes(b"".join(history_lines(history)))
    to = console()
    width = WIDTH if svg is not None else min(width_of(to) or WIDTH, WIDTH)
    lines = [*_heading(history, host.info.obstacle, width)]
    structure = structure_of(history)
    lines += opening(history.header.scenario.mappings, structure, width)
    for scene in scenes(history):
        if not numbers or scene.number in numbers:
            lines += scene_lines(scene, structure, width)
    checked = judged(history)
    lines += _end(checked, width)
    if svg is None:
        print_lines(to, map(in_ascii, lines) if to.options.ascii_only else lines)
    else:
        _save_picture(lines, svg)
    ctx.exit(checked.verdict.status.exit_status)


def recorded() -> History:
    """Return the run that is shown where nothing can run."""
    return read_history(RECORDED)


def _run(host: Host) -> History:
    from vmm.execution.runner import run_isolated

    return run_isolated(story(host.features), host.features, host=host.info.in_brief())


def _heading(history: History, obstacle: str, width: int) -> Iterator[Text]:
    """Yield the kernel that this runs, or ran, on."""
    host = history.header.host
    kernel = f"Linux {host.get('kernel', 'unknown')}, {host.get('vendor', 'unknown')}"
    if obstacle:
        text = f"A recorded run, of {kernel}: nothing can run here ({obstacle})."
    else:
        text = f"Live, on {kernel}."
    yield from (Text(f"  {line}", style="bold") for line in textwrap.wrap(text, width - 4))
    yield Text()


def _end(checked: Checked, width: int) -> list[Text]:
    if checked.verdict.status is not Status.PASSED:
        return terminal.single(checked, "vmm demo", width)
    text = "All of this is what the model expects. `vmm check` tries much more."
    return [Text(f"  {line}", "green") for line in textwrap.wrap(text, width - 4)]


def _save_picture(lines: list[Text], file: Path) -> None:
    """Save the demo as SVG, in colour: the picture that the README shows."""
    canvas = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    print_lines(canvas, lines)
    picture = canvas.export_svg(title="vmm demo")
    # Without Rich's fonts, which a viewer would download.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    with written(file) as stream:
        stream.write(picture)
