"""What is known to fail fails as it is known to, here, or passes by now: nothing else happens."""

import pytest

from vmm.catalogue import catalogue
from vmm.execution.probe.features import probe_features
from vmm.execution.runner import run_isolated
from vmm.host.hostinfo import host_facts
from vmm.kvm.system import Kvm
from vmm.verdict.judge import Status
from vmm.verdict.known_issues import KNOWN_ISSUES, known_issue
from vmm.verdict.result import judged

NAMES = sorted(name for issue in KNOWN_ISSUES for name in issue.scenarios)


@pytest.mark.parametrize("name", NAMES)
def test_known_issue_shows_where_it_is_known(kvm: Kvm, name: str) -> None:
    features = probe_features(kvm)
    host = host_facts().in_brief()
    scenario = next(each for each in catalogue(features) if each.name == name)
    missing = features.missing(scenario.needs)
    if missing:
        pytest.skip(f"needs {missing}")
    status = judged(run_isolated(scenario, features, host=host)).verdict.status
    issue = known_issue(name, host)
    if issue is None:
        assert status is Status.PASSED
    elif issue.vendor:
        assert status in (Status.KNOWN, Status.PASSES_NOW)
    else:
        assert status in (Status.KNOWN, Status.PASSED)
