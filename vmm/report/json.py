"""A run as JSON, for programs."""

from typing import Any

import msgspec

from vmm.host.hostinfo import HostInfo
from vmm.report.reporter import Reporter, Write, at_the_end
from vmm.scenario.features import Features
from vmm.verdict.result import Checked, Run

FORMAT = 1


def json_report(write: Write) -> Reporter:
    """Return a reporter that writes the whole result at the end."""
    return at_the_end(write, run_text)


def run_text(run: Run) -> str:
    """Return the whole result: verdicts, features, facts of the host, and kernel health."""
    data = {
        "format": FORMAT,
        "status": run.status.value,
        "exit_status": run.status.exit_status,
        "counts": {status.value: count for status, count in run.counts.items()},
        "seconds": round(run.seconds, 3),
        "cpus": run.cpus,
        "scenarios": [_scenario(checked) for checked in run.checked],
        "not_run": run.not_run,
        "kernel_healthy": not any(checked.unexplained for checked in run.checked),
        "weaknesses": run.weaknesses,
        "features": run.features,
        "host": run.host,
    }
    return text(data)


def host_text(info: HostInfo, features: Features | None) -> str:
    """Return what is known of a host, and whether scenarios can run there."""
    return text({"format": FORMAT, "usable": not info.obstacle, "host": info, "features": features})


def text(value: object) -> str:
    """Return anything made of dataclasses and structures as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


def _scenario(checked: Checked) -> dict[str, Any]:
    verdict = checked.verdict
    return {
        "name": verdict.scenario,
        "status": verdict.status.value,
        "reason": verdict.reason,
        "why": checked.scenario.why,
        "tags": checked.scenario.tags,
        "events": verdict.events,
        "rules": verdict.rules,
        "seconds": round(checked.seconds, 4),
        "difference": verdict.difference,
        "under_way": verdict.under_way,
        "kernel_complaints": checked.problems,
        "known_issue": checked.issue,
    }
