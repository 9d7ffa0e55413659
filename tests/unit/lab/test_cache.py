"""Folders of the lab's runs, and who may still be writing there."""

import os
from pathlib import Path

import pytest

from vmm.lab import cache


def test_a_run_is_alive_as_long_as_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = cache.new_run_folder()
    assert cache.is_alive(run)
    gone = os.fork()
    if not gone:
        os._exit(0)
    os.waitpid(gone, 0)
    for text in (str(gone), "", "no number"):
        (run / "pid").write_text(text)
        assert not cache.is_alive(run)
    (run / "pid").write_text("1")  # Somebody else's, perhaps.
    assert cache.is_alive(run)
