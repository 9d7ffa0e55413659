"""``--white-box``: look at what the kernel holds, while a scenario runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmm.cli.errors import NothingRan

if TYPE_CHECKING:
    from vmm.execution.executor import LookAt

white_box_option = click.option(
    "--white-box",
    is_flag=True,
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
def looking(white_box: bool, debug_info: Path | None) -> Iterator["LookAt | None"]:
    """Yield what reads the kernel's memslots, None where nobody asked for it.

    Raises NothingRan with a line that says what is missing.
    """
    if not white_box:
        yield None
        return
    from vmm.whitebox.box import opened
    from vmm.whitebox.errors import CannotLookError

    try:
        with opened(debug_info) as box:
            yield box.reader
    except CannotLookError as error:
        raise NothingRan(f"--white-box: {error}") from None
