"""What this host is known to get wrong is nothing that a smaller scenario may come to."""

import pytest

from tests.ideal import FEATURES, ideal_history
from vmm.fuzz.minimise import confirm, process
from vmm.scenario.history import History
from vmm.scenario.operations import Scenario
from vmm.verdict.identity import Identity

HOST = {"kernel": "6.18.1", "vendor": "kvm_pvm"}


@pytest.mark.parametrize(("known", "found"), [(True, None), (False, Identity("Touch"))])
def test_a_known_difference_is_none(
    known: bool, found: Identity | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, str]] = []

    class Tried:
        identity = Identity("Touch")
        is_known = known

    def attempt(
        kvm: object, scenario: Scenario, features: object, *, host: dict[str, str]
    ) -> Tried:
        asked.append(host)
        return Tried()

    def run(scenario: Scenario, features: object, **given: object) -> History:
        assert given["host"] == HOST
        return ideal_history(scenario, FEATURES)

    scenario = Scenario("s", (), survey="none")
    task = process.Task(scenario, Identity("Touch"), FEATURES, 1.0, 0, host=HOST)
    monkeypatch.setattr(process, "attempt", attempt)
    assert process._identity_of(None, task, scenario) == found  # type: ignore[arg-type]
    assert asked == [HOST]
    monkeypatch.setattr(confirm, "run_isolated", run)
    monkeypatch.setattr(confirm, "judged", lambda header, events: Tried())
    assert confirm._identity_of(scenario, FEATURES, HOST) == found
