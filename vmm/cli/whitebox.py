"""``--white-box``: look at what the kernel holds, while a scenario runs."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from vmm.cli.errors import NothingRan, Unusable, usable
from vmm.cli.said import say
from vmm.scenario.reading import FileError, opened as opened_file

WHERE_IT_CAN = "VMM_WHITE_BOX"
"""The variable by which the lab asks for it where nobody says anything else."""

_ELF = b"\x7fELF"


white_box_option = click.option(
    "--white-box/--no-white-box",
    default=None,
    help="Compare the kernel's own memslots, too, after every region operation.",
)
debug_info_option = click.option(
    "--debug-info",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="VMM_DEBUG_INFO",
    metavar="FILE",
    help="The kvm.ko of this kernel with debug information, for --white-box.",
)


@contextmanager
def looking(white_box: bool | None, debug_info: Path | None) -> Iterator[None]:
    """Let scenarios be run with a look at the kernel's memslots, if somebody asked for it.

    Raises NothingRan with a line that says what is missing; where only the lab asked, that line is
    printed, and nobody looks. Raises Unusable for a file that can hold no debug information.
    """
    is_usual = white_box is None and bool(os.environ.get(WHERE_IT_CAN))
    if debug_info is not None and not is_usual:
        _check_debug_info(debug_info)
    if not white_box and not is_usual:
        yield
        return
    from vmm.execution.looking import looked_at_by
    from vmm.whitebox.box import opened
    from vmm.whitebox.errors import CannotLookError

    with ExitStack() as stack:
        look_at = None
        try:
            look_at = stack.enter_context(opened(debug_info)).reader
        except CannotLookError as error:
            if not is_usual:
                raise NothingRan(f"--white-box: {error}") from None
            say(f"not looked into the kernel (white box): {error}")
        with looked_at_by(look_at):
            yield


def _check_debug_info(path: Path) -> None:
    from vmm.whitebox.description import SUFFIX, one_of_ours
    from vmm.whitebox.errors import CannotLookError

    if path.suffix == SUFFIX:
        try:
            one_of_ours(path)
        except CannotLookError as error:
            raise Unusable(str(error)) from None
        return
    try:
        with usable(path), opened_file(path) as file:
            if file.read(len(_ELF)) != _ELF:
                raise Unusable(f"{path}: no ELF file: a kvm.ko with debug information is needed")
    except FileError as error:
        raise Unusable(str(error)) from None
