"""``vmm man``: the manual page, made from the help of all commands."""

import re
from collections.abc import Iterator

import click

from vmm.cli.command import Command
from vmm.cli.output.printing import put

_SPECIAL = {"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"}


@click.command(cls=Command)
@click.pass_context
def man(ctx: click.Context) -> None:
    """Print this program's manual page: `vmm man | man -l -`."""
    put("\n".join((*page(ctx.find_root()), "")))


def page(root: click.Context) -> Iterator[str]:
    """Yield the page's lines in roff (man(7)); ``root`` is the context of the whole group."""
    group = root.command
    assert isinstance(group, click.Group)
    yield '.TH VMM 1 "" "memslot\\-vmm" "User Commands"'
    yield from (".SH NAME", "vmm \\- prove on a kernel that KVM\\(aqs memslots behave")
    yield from (".SH SYNOPSIS", ".B vmm", "[\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]")
    yield from (".SH DESCRIPTION", *_paragraphs(group.help or ""))
    yield ".SH COMMANDS"
    for name in group.list_commands(root):
        command = group.get_command(root, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=root)
        yield from _command(command, context)
    yield from (".SH EXIT STATUS", *_paragraphs(group.epilog or ""))


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    usage = " ".join(command.collect_usage_pieces(context))
    yield from (f'.SS "vmm {context.info_name} {_roff(usage)}"', *_paragraphs(command.help or ""))
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[1] and "--help" not in parameter.opts:
            yield from (".TP", f".B {_roff(record[0])}", _roff(record[1]))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            told = f"{context.info_name} {name}"
            yield from _command(inner, click.Context(inner, info_name=told, parent=context))


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        if number:
            yield ".PP"
        yield _roff(" ".join(paragraph.replace("\b", "").split()))


def _roff(text: str) -> str:
    """Escape text; a dot at the start of a line would be a request."""
    escaped = "".join(_SPECIAL.get(each, each) for each in text).replace('"', "\\(dq")
    return "\\&" + escaped if escaped.startswith(".") else escaped
