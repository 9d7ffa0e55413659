"""What machines that share a check print."""

from vmm.cli.lab.lines import SharedLines


def test_whole_lines_are_handed_on_and_what_is_said_twice_once() -> None:
    printed: list[bytes] = []
    lines = SharedLines(printed.append)
    one, other = lines.of_one(), lines.of_one()
    one(b"no ")
    other(b"no types\nand ")
    one(b"types\nmine")
    assert printed == [b"no types\n"]
    lines.end()
    assert printed == [b"no types\n", b"mine\n", b"and \n"]
    lines.end()
    assert len(printed) == 3, "nothing is left"
