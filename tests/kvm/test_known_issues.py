"""What is known to fail fails as it is known to, here, or passes by now: nothing else happens."""

import pytest

from vmm.catalogue import catalogue
from vmm.execution.probe.features import probe_features
from vmm.execution.runner import run_isolated
from vmm.host.hostinfo import host_facts
from vmm.kvm.system import Kvm
from vmm.scenario.features import Features
from vmm.scenario.history import Header
from vmm.verdict.ideal import EVERYTHING
from vmm.verdict.judge import Status
from vmm.verdict.known.issues import KNOWN
from vmm.verdict.known.weighing import issues_met
from vmm.verdict.result import judged

BY_NAME = {
    scenario.name: scenario
    for scenario in catalogue(EVERYTHING)
    if any(known.meets(scenario) for known in KNOWN if known.kinds)
}


@pytest.fixture(scope="module")
def features() -> Features:
    with Kvm.open() as kvm:
        return probe_features(kvm)


@pytest.fixture(scope="module")
def host() -> dict[str, str]:
    return host_facts().in_brief()


@pytest.mark.parametrize("name", BY_NAME)
def test_known_issue_shows_where_it_is_known(
    features: Features, host: dict[str, str], name: str
) -> None:
    scenario = next(each for each in catalogue(features) if each.name == name)
    missing = features.missing(scenario.needs, scenario.vm_type)
    if missing:
        pytest.skip(f"needs {missing}")
    issues = issues_met(Header(scenario, features, host))
    patience = 0.2 if any(issue.hangs for issue in issues) else 1
    history = run_isolated(scenario, features, host=host, patience=patience)
    status = judged(history).verdict.status
    if any(issue.vendor for issue in issues):
        assert status in (Status.KNOWN, Status.PASSES_NOW)
    else:
        assert status in ((Status.KNOWN, Status.PASSED) if issues else (Status.PASSED,))
