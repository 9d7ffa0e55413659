"""Loads what looking for bugs needs, and waits for orders: see `vmm.cli.preloaded`."""

import sys

from tests.mutants import inside
from vmm.cli.preloaded import ordered

PROGRAM = "tests.mutants.inside"

if __name__ == "__main__":
    sys.exit(inside.main(ordered(PROGRAM)))
