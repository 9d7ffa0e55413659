"""Opens the running kernel's memory, once for all scenarios of a run."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vmm.whitebox.description import described
from vmm.whitebox.errors import CannotLookError
from vmm.whitebox.kcore import Kcore
from vmm.whitebox.layout import Layout
from vmm.whitebox.reader import NotFoundError, Reader


@dataclass(frozen=True, slots=True)
class WhiteBox:
    """The kernel's memory, and the layout of its memslots. Child processes may use it."""

    memory: Kcore
    layout: Layout
    vm_list: int

    def reader(self, pid: int) -> Reader:
        """Return a reader of the newest VM of a process. Raises CannotLookError."""
        try:
            return Reader(self.memory.read, self.layout, self.vm_list, pid)
        except (NotFoundError, OSError) as error:
            raise CannotLookError(f"the kernel's list of VMs: {error}") from None


@contextmanager
def opened(debug_info: Path | None = None, kcore: Path = Path("/proc/kcore")) -> Iterator[WhiteBox]:
    """Yield the white box of the running kernel. Raises CannotLookError."""
    try:
        memory = Kcore(kcore)
    except FileNotFoundError:
        raise CannotLookError(f"this kernel has no {kcore} (CONFIG_PROC_KCORE)") from None
    except OSError as error:
        raise CannotLookError(f"{kcore}: {error.strerror}: be root, without lockdown") from None
    except ValueError as error:
        raise CannotLookError(f"{kcore}: {error}") from None
    with memory:
        yield WhiteBox(memory, *described(debug_info, platform.release()))
