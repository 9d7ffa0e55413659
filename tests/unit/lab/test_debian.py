import hashlib
import json
from pathlib import Path

import pytest

from tests.unit.lab.test_kernel import image
from vmm.lab import debian
from vmm.lab.errors import LabError

NAMES = [
    *("linux-image-6.12.90+deb13-amd64-unsigned", "linux-image-6.12.118+deb13-amd64-unsigned"),
    *("linux-image-6.12.119+deb13-cloud-amd64-unsigned", "linux-image-6.12.119+deb13-rt-amd64"),
    *("linux-image-6.12.119+deb13-rt-amd64-unsigned", "linux-image-amd64"),
    *("linux-image-6.1.0-0.deb11.52-amd64-unsigned", "linux-image-6.12.118+deb13-amd64-dbg"),
    *("linux-binary-unsigned-7.2.13+deb14-amd64", "linux-modules-7.2.13+deb14-amd64"),
    *("linux-binary-unsigned-7.2.14+deb14-amd64", "linux-binary-unsigned-7.2.15+deb14-rt-amd64"),
]


def test_the_newest_plain_kernel_of_a_series_is_chosen() -> None:
    chosen = debian.newest_of("6.12.", NAMES)
    assert chosen == ("linux-image-6.12.118+deb13-amd64-unsigned",)


def test_an_image_in_two_packages_needs_both() -> None:
    assert debian.newest_of("", NAMES) == (
        "linux-binary-unsigned-7.2.13+deb14-amd64",
        "linux-modules-7.2.13+deb14-amd64",
    )


def test_a_series_that_is_not_there_is_said() -> None:
    with pytest.raises(LabError, match=r"no kernel 5\.10\."):
        debian.newest_of("5.10.", NAMES)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a cache's folder with a kernel in it, which no apt could fetch again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(debian, "KEYRING", tmp_path / "no-keyring")
    folder = tmp_path / "memslot-vmm" / "debian" / "debian-6.1"
    path = image(folder / "boot" / "vmlinuz-6.1.9", "6.1.9")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest = {"packages": ["linux-image 6.1.9-1"], "sha256": {"boot/vmlinuz-6.1.9": digest}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_kernel_in_the_cache_is_taken_from_there(kept: Path) -> None:
    kernel = debian.fetched("debian-6.1", print)
    assert (kernel.release, kernel.label) == ("6.1.9", "debian-6.1 (linux-image 6.1.9-1)")


@pytest.mark.parametrize("damage", ["boot/vmlinuz-6.1.9", "manifest.json"])
def test_a_damaged_one_is_fetched_again(
    kept: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (kept / damage).write_bytes(b"{}")
    with pytest.raises(LabError, match="no-keyring is missing"):
        debian.fetched("debian-6.1", print)
    assert "is damaged" in capsys.readouterr().out
