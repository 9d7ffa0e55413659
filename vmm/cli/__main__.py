"""``python -m vmm.cli`` is ``vmm``."""

from vmm.cli.main import main

main(prog_name="vmm")
