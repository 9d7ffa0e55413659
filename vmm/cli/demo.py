"""``vmm demo``: show what a memslot is, on this kernel."""

import io
import re
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from vmm.cli.errors import usable
from vmm.cli.host import USUAL, look_at_host, require_usable
from vmm.cli.output import console, print_lines
from vmm.report import terminal
from vmm.report.demo import WIDTH, in_ascii, opening, scene_lines
from vmm.report.story import chapters, scenes, story
from vmm.verdict.judge import Status
from vmm.verdict.result import Checked, judged

CHAPTERS = len(chapters(USUAL))


@click.command()
@click.argument("numbers", nargs=-1, type=click.IntRange(1, CHAPTERS), metavar="[CHAPTER]...")
@click.option("--svg", type=click.Path(path_type=Path, dir_okay=False), hidden=True)
@click.pass_context
def demo(ctx: click.Context, numbers: tuple[int, ...], svg: Path | None) -> None:
    """Show what a memslot is, step by step, on this kernel.

    The story is always run whole; with the numbers of chapters only those are shown.
    """
    host = look_at_host()
    require_usable(host)

    from vmm.execution.runner import run_isolated

    history = run_isolated(story(host.features), host.features, host=host.info.in_brief())
    lines = opening(history.header.scenario.mappings)
    for scene in scenes(history):
        if not numbers or scene.number in numbers:
            lines += scene_lines(scene)
    checked = judged(history)
    lines += _end(checked)
    if svg is None:
        to = console()
        print_lines(to, map(in_ascii, lines) if to.options.ascii_only else lines)
    else:
        _save_picture(lines, svg)
    ctx.exit(checked.verdict.status.exit_status)


def _end(checked: Checked) -> list[Text]:
    if checked.verdict.status is not Status.PASSED:
        return terminal.single(checked, "vmm demo", WIDTH)
    return [Text("  All of this is what the model expects. `vmm check` tries much more.", "green")]


def _save_picture(lines: list[Text], file: Path) -> None:
    """Save the demo as SVG, in colour: the picture that the README shows."""
    canvas = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    print_lines(canvas, lines)
    picture = canvas.export_svg(title="vmm demo")
    # Rich's fonts are left out: a viewer would fetch them from elsewhere.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    with usable(file):
        file.write_text(picture, encoding="utf-8")
