"""A run as JSON, for programs."""

import json
from collections.abc import Iterable

import msgspec

from vmm.host.hostinfo import HostInfo
from vmm.report.reporter import Reporter, Write, at_the_end
from vmm.report.resultfile import FORMAT as FORMAT, result_file
from vmm.scenario.features import Features
from vmm.scenario.operations import Scenario
from vmm.verdict.result import Run


def json_report(write: Write) -> Reporter:
    """Return a reporter that writes the whole result at the end."""
    return at_the_end(write, run_text)


def run_text(run: Run) -> str:
    """Return the whole result, one scenario a line: see `vmm.report.resultfile`."""
    lines: list[bytes] = []
    result = result_file(run)
    for name in result.__struct_fields__:
        value = getattr(result, name)
        if name == "scenarios" and value:
            data = b"[\n    " + b",\n    ".join(map(encoded, value)) + b"\n  ]"
        else:
            data = encoded(value)
        lines.append(b"  " + encoded(name) + b": " + data)
    return (b"{\n" + b",\n".join(lines) + b"\n}\n").decode()


def list_text(scenarios: Iterable[tuple[Scenario, str]]) -> str:
    """Return a list of scenarios, each with what it lacks on this host (empty if it runs)."""
    listed = [
        {"name": each.name, "why": each.why, "tags": each.tags, "skipped": lack}
        for each, lack in scenarios
    ]
    return text({"format": FORMAT, "scenarios": listed})


def host_text(info: HostInfo, features: Features | None) -> str:
    """Return what is known about a host, and whether scenarios can run there."""
    return text({"format": FORMAT, "usable": not info.obstacle, "host": info, "features": features})


def text(value: object) -> str:
    """Return dataclasses and structures as indented ASCII JSON.

    ASCII, so that nothing quoted from a file or a kernel can control the terminal.
    """
    return json.dumps(msgspec.json.decode(encoded(value)), indent=2) + "\n"


def encoded(value: object) -> bytes:
    """Return JSON; lone surrogates, which files can hold but UTF-8 cannot encode, are escaped."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_without_halves(msgspec.to_builtins(value)))


def _without_halves(value: object) -> object:
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case list() | tuple():
            return [_without_halves(item) for item in value]
        case dict():
            return {_without_halves(key): _without_halves(item) for key, item in value.items()}
        case _:
            return value
