"""Curated scenarios, each as a test."""

from vmm.testing import memslot_scenario

test_moves = memslot_scenario("move-up", "move-down*")
test_userspace_address_0 = memslot_scenario("zero-va-create-*")
