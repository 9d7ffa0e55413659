"""A cache that has the machine's init: to compile it takes longer than most of these tests."""

from contextlib import suppress
from pathlib import Path

import pytest

from vmm.lab.errors import MissingError
from vmm.lab.initramfs import compiled_init


@pytest.fixture(scope="session")
def cache_with_init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patched, suppress(MissingError):
        patched.setenv("XDG_CACHE_HOME", str(folder))
        compiled_init()
    return folder
