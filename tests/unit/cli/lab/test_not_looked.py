"""The lab asks for a look into the kernel by itself: where there is none, a short line says so."""

import click
import pytest
from click.testing import CliRunner

from vmm.cli.options.whitebox import WHERE_IT_CAN, looking
from vmm.whitebox import box
from vmm.whitebox.errors import CannotLookError

WHY = "no debug information of memslots: " + "and so on " * 20


@click.command()
@click.option("-v", "--verbose", is_flag=True)
def command(verbose: bool) -> None:
    with looking(None, None):
        pass


@pytest.mark.parametrize(
    ("options", "said"),
    [((), "no types, no drgn; -v says more"), (("-v",), WHY.strip())],
    ids=["short", "verbose"],
)
def test_why_not_is_a_short_line(
    options: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object) -> None:
        raise CannotLookError(WHY, "no types, no drgn")

    monkeypatch.setenv(WHERE_IT_CAN, "1")
    monkeypatch.setattr(box, "opened", opened)
    result = CliRunner().invoke(command, options)
    assert result.exit_code == 0
    assert said in result.output
    assert ("and so on" in result.output) is bool(options)
