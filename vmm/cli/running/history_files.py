"""Files that histories are written to while scenarios run, so that they survive a host crash."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from vmm.cli.output.errors import Unusable, usable
from vmm.cli.output.writing import folder_made
from vmm.execution.runner import Record
from vmm.host.naming import named
from vmm.verdict.judge import Status
from vmm.verdict.result import Checked

UNDER_WAY = "under-way.jsonl"


@dataclass(frozen=True, slots=True)
class HistoryFiles:
    """Where histories go; None: nowhere.

    ``file`` holds the history of the scenario under way, ``folder`` those of scenarios that did not
    pass, and ``histories`` is an unbuffered file of all of them.
    """

    file: Path | None = None
    folder: Path | None = None
    histories: IO[bytes] | None = None
    failures: list[str] = field(default_factory=list)
    """Which histories could not be written, and why."""

    def keep(self, record: Record, checked: Checked) -> None:
        """Keep the history of a scenario that ran. Raises OSError."""
        if self.histories is not None:
            left = memoryview(record.data)
            while left:
                left = left[self.histories.write(left) :]
        passed = checked.verdict.status is Status.PASSED and not checked.failed
        if self.folder is not None and not passed:
            path = self.folder / f"{record.header.scenario.name}.jsonl"
            with named(path):
                path.write_bytes(record.data)


@contextmanager
def history_files(
    folder: Path | None, histories: IO[bytes] | None = None, failed: Path | None = None
) -> Iterator[HistoryFiles]:
    """Yield the files for a run of many scenarios; that of the one under way is removed at the end.

    Without a ``folder`` nothing is written while a scenario runs, which costs nothing; ``failed``
    is the folder for histories of scenarios that did not pass. A new folder in which nothing was
    kept is removed.

    Raises Unusable if a folder cannot be used, or holds the file of a run that broke off.
    """
    if folder is None:
        with folder_made(failed) if failed is not None else nullcontext():
            yield HistoryFiles(folder=failed, histories=histories)
        return
    file = folder / UNDER_WAY
    with folder_made(folder):
        with usable(folder):
            if file.exists():
                raise Unusable(
                    f"{file}: left by a run that broke off: `vmm judge` says where; then remove it"
                )
            file.touch()
        try:
            yield HistoryFiles(file, folder, histories)
        finally:
            file.unlink(missing_ok=True)
