"""Result files that the user names; a bad one is one line and status 2."""

from pathlib import Path

from vmm.cli.errors import Unusable, usable
from vmm.report.resultfile import ResultError, ResultFile, parse_result


def result_from(path: Path) -> ResultFile:
    """Return the result in a file. Raises Unusable."""
    with usable(path):
        text = path.read_bytes()
    try:
        return parse_result(text, str(path))
    except ResultError as error:
        raise Unusable(str(error)) from None
