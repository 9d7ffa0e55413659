"""Two adjacent slots, a READONLY one above them, and their borders, for single instructions."""

from vmm.catalogue._build import Slot, at
from vmm.catalogue._instructions import gpa_of
from vmm.scenario.operations import READONLY

LOW = Slot(1, 0x100, at("a"), 2)
HIGH = Slot(2, 0x102, at("b"))
RO = Slot(3, 0x103, at("b", 1), 2, READONLY)

PAGE = gpa_of(0x101)
"""The border of two pages of a slot."""

SLOT = gpa_of(0x102)
"""The border of two slots."""

START, END = gpa_of(0x103), gpa_of(0x105)
"""The borders of the READONLY slot."""

HOLE = gpa_of(0x110)
