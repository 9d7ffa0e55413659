"""The pages of the library: made from docstrings, without a warning."""

import os
import re
import subprocess
import sys
from pathlib import Path

import vmm

ROOT = Path(__file__).parents[2]


def test_pages_are_built_without_a_warning_and_hold_every_public_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "library" / "index.html").read_text()
    modules = {"exits", "history", "kernelslots", "operations"}
    for name in set(vmm.__all__) - modules:
        assert f'.{name}"' in page, name
    for name in modules | {"SetUserMemoryRegion", "Mmio", "Vcpu.get_regs", "HostMapping.discard"}:
        assert name in page
    assert leading_nowhere(tmp_path) == []
    assert "<blockquote>" not in page  # What becomes of an example that is not marked as code.
    assert page.count("&gt;&gt;&gt; ") > 300


def leading_nowhere(site: Path) -> list[str]:
    """Return the links of a site's pages, also those of its theme, that lead to no file of it."""
    found = []
    for page in sorted(site.glob("*/**/*.html")):
        for link in re.findall(r'(?:href|src)="([^"#:]+)(?:#[^"]*)?"', page.read_text()):
            target = Path(os.path.normpath(page.parent / link))
            if not (target / "index.html" if target.is_dir() else target).exists():
                found.append(f"{page.relative_to(site)}: {link}")
    return found
