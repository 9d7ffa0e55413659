"""``vmm check --list``: what a run would run on this host, and what it would skip."""

import click

from vmm.cli.options.selection import curated, select
from vmm.cli.output.console import console, print_lines, width_of
from vmm.cli.output.formats import Wanted
from vmm.cli.output.printing import say
from vmm.cli.output.writing import document
from vmm.cli.running.host import look_at_host
from vmm.host.freememory import FreeMemory
from vmm.report import json, terminal
from vmm.scenario.demand import short_of_memory
from vmm.scenario.features import Features
from vmm.scenario.operations import Scenario
from vmm.scenario.plan import why_not
from vmm.scenario.selection import SLOW, Selection


def show_list(selection: Selection, wanted: Wanted, patience: float) -> None:
    """List the selected scenarios as text or JSON; nothing runs."""
    if wanted.name not in ("text", "json"):
        raise click.UsageError(f"--list is text or json, not {wanted.name}")
    host = look_at_host(patience)
    every = curated(host.features)
    chosen = select(every, selection)
    free_bytes = FreeMemory().size_bytes()
    listed = [(each, _lack(each, host.features, free_bytes)) for each in chosen]
    if wanted.name == "json":
        with document(wanted.file) as stream:
            stream.write(json.list_text(listed))
    else:
        to = console()
        print_lines(to, terminal.listing(listed, width_of(to)))
    if host.why_not:
        say(f"on a usual host; here {host.why_not}")
    elif host.trouble is not None:
        say("on a usual host; this kernel could not be asked: see `vmm info`")
    slow = sum(SLOW in each.tags for each in every)
    if slow and selection.leaves_slow_out:
        say(f"{slow} slow scenarios are not among them: --all")


def _lack(scenario: Scenario, features: Features, free_bytes: int) -> str:
    return why_not(scenario, features) or short_of_memory(scenario, free_bytes)
