"""``vmm compare``: the same scenarios on two kernels."""

from pathlib import Path

import click

from vmm.cli.errors import Unusable
from vmm.cli.files import history_from
from vmm.fuzz.compare import features_that_differ, partings
from vmm.memslots.history import History

_DIFFERENT = 1
_MOST = 20


@click.command()
@click.argument("first", metavar="A.jsonl", type=click.Path(path_type=Path))
@click.argument("second", metavar="B.jsonl", type=click.Path(path_type=Path))
@click.pass_context
def compare(ctx: click.Context, first: Path, second: Path) -> None:
    """Say where two histories differ, whoever is right.

    Each is a file, or a folder of files that are compared by name. Exit status 1 if they differ.
    """
    pairs, alone = _pairs(first, second)
    differing = 0
    for a, b in pairs:
        differing += _compare(a, b)
    for path in alone:
        click.echo(f"{path}: has no counterpart")
    click.echo(f"{len(pairs)} compared, {differing} differ" + _rest(len(alone)))
    ctx.exit(_DIFFERENT if differing or alone else 0)


def _rest(alone: int) -> str:
    return f", {alone} without a counterpart" if alone else ""


def _pairs(first: Path, second: Path) -> tuple[list[tuple[Path, Path]], list[Path]]:
    if first.is_dir() != second.is_dir():
        raise Unusable(f"{first} and {second}: two files or two folders are needed")
    if not first.is_dir():
        return [(first, second)], []
    names = {path.relative_to(first) for path in first.rglob("*.jsonl")}
    others = {path.relative_to(second) for path in second.rglob("*.jsonl")}
    both = [(first / name, second / name) for name in sorted(names & others)]
    alone = [first / name for name in sorted(names - others)]
    return both, alone + [second / name for name in sorted(others - names)]


def _compare(first: Path, second: Path) -> bool:
    """Print where two histories differ; return whether they do."""
    a, b = history_from(first), history_from(second)
    if a.header.scenario.operations != b.header.scenario.operations:
        raise Unusable(f"{first} and {second}: histories of different scenarios")
    found = list(partings(a, b))
    if not found:
        return False
    click.echo(f"{a.header.scenario.name}:")
    click.echo(f"  A: {_host(a)}")
    click.echo(f"  B: {_host(b)}")
    for line in features_that_differ(a.header.features, b.header.features):
        click.echo(f"  feature {line}")
    for parting in found[:_MOST]:
        click.echo(f"  step {parting.event}: {parting.operation}")
        click.echo(f"    A: {parting.first}")
        click.echo(f"    B: {parting.second}")
    if len(found) > _MOST:
        click.echo(f"  ... and {len(found) - _MOST} more")
    return True


def _host(history: History) -> str:
    host = history.header.host
    return f"{host.get('kernel', 'unknown kernel')}, {host.get('vendor', 'unknown vendor')}"
