"""The pytest plugin, for tests of one's own; `memslot_scenario` is imported from here."""

from vmm.testing.scenarios import memslot_scenario

__all__ = ["memslot_scenario"]
