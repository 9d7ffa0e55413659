"""A program whose own modules cannot be read says so in one line, with a documented status."""

import sys

import pytest

from vmm.cli.__main__ import run


class Broken:
    """Finds no module of the command line's."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Fail where the command line is looked for."""
        if name == "vmm.cli.main":
            raise self.error


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (OSError(24, "Too many open files"), 3, "vmm: the host: Too many open files\n"),
        (ImportError("cannot open shared object file"), 70, "vmm: internal error: cannot open "),
    ],
)
def test_a_start_that_fails_is_no_verdict(
    error: Exception,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("vmm.cli.__main__.ENDING_SIGNALS", ())
    monkeypatch.setattr("gc.set_threshold", lambda *_: None)
    monkeypatch.delitem(sys.modules, "vmm.cli.main", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(error), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == status
    assert capfd.readouterr().err.startswith(line)
