"""The pytest plugin; tests import `memslot_scenario` from here."""

from vmm.testing.scenarios import memslot_scenario

__all__ = ["memslot_scenario"]
