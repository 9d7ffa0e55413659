"""``--white-box``: read the kernel's own memslots while scenarios run."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmm.cli.options.paths import FilePath
from vmm.cli.output.errors import NothingRan, Unusable, usable
from vmm.cli.output.printing import say
from vmm.scenario.reading import FileError, opened as opened_file

if TYPE_CHECKING:
    from vmm.whitebox.errors import CannotLookError

WHERE_IT_CAN = "VMM_WHITE_BOX"
"""The environment variable by which the lab asks for it unless the user decides."""

_ELF = b"\x7fELF"


white_box_option = click.option(
    "--white-box/--no-white-box",
    default=None,
    help="Compare the kernel's own memslots, too, after every region operation.",
)
debug_info_option = click.option(
    "--debug-info",
    type=FilePath(path_type=Path, dir_okay=False),
    envvar="VMM_DEBUG_INFO",
    metavar="FILE",
    help="The kvm.ko of this kernel with debug information, for --white-box.",
)


@contextmanager
def looking(white_box: bool | None, debug_info: Path | None) -> Iterator[None]:
    """Read the kernel's memslots while scenarios run in the block, if that was asked for.

    Raises NothingRan with what is missing; if only the lab asked, prints that and does not look.
    Raises Unusable for a file that cannot hold debug information.
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
            say(f"not looked into the kernel (white box): {_in_brief(error)}")
        with looked_at_by(look_at):
            yield


def _in_brief(error: "CannotLookError") -> str:
    """Return why one cannot look, as far as somebody wants to know who did not ask for it."""
    context = click.get_current_context(silent=True)
    why = str(error)
    if error.in_brief == why or (context is not None and context.params.get("verbose")):
        return why
    return f"{error.in_brief}; -v says more"


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
