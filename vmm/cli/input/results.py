"""Result files that the user names; a bad one is one line and status 2."""

from pathlib import Path

from vmm.cli.output.errors import Unusable
from vmm.report.resultfile import ResultError, ResultFile, parse_result
from vmm.scenario.reading import MAX_HISTORY_BYTES, FileError, read_text


def result_from(path: Path) -> ResultFile:
    """Return the result in a file. Raises Unusable."""
    try:
        return parse_result(read_text(path, MAX_HISTORY_BYTES), str(path))
    except (FileError, ResultError) as error:
        raise Unusable(str(error)) from None
