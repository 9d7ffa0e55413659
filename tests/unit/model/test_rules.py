"""The rules: each is in the list, has a name of its own, and says what it rests on."""

import importlib
import pkgutil
from collections import Counter

import vmm.model
from vmm.model.rule import Rule
from vmm.model.rules import all_rules


def test_every_rule_of_every_module_is_listed() -> None:
    modules = [
        importlib.import_module(info.name)
        for info in pkgutil.walk_packages(vmm.model.__path__, "vmm.model.")
    ]
    made = {each for module in modules for each in vars(module).values() if isinstance(each, Rule)}
    assert made == set(all_rules())
    assert len(made) > 90


def test_no_two_rules_share_a_name() -> None:
    names = Counter(rule.name for rule in all_rules())
    assert [name for name, times in names.items() if times > 1] == []


def test_every_rule_says_what_it_promises_and_where_that_is_written() -> None:
    for rule in all_rules():
        assert rule.promise, rule.name
        assert rule.cite, rule.name
        written = any(page in rule.cite for page in ("api.rst", "x86/msr.rst"))
        assert written or rule.basis == "source", rule.name
