"""What the lab knows of a kernel's structures, so that commands in a machine need not find out."""

from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import msgspec

from vmm.cli.output.writing import written_bytes
from vmm.lab.cache import cache_folder
from vmm.lab.kernel import Kernel
from vmm.lab.modules import read
from vmm.whitebox.description import Description, from_debug_info
from vmm.whitebox.errors import CannotLookError
from vmm.whitebox.symbols import within

_VERSION = "6"


def description_of(kernel: Kernel) -> Path | None:
    """Return a file for `--debug-info`, made once and cached; None for a kernel without a module.

    If the module has no debug information, the file says where its list of VMs is, and the kernel's
    own types provide the rest.
    """
    module = kernel.debug_info or kernel.modules.get("kvm")
    if module is None:
        return None
    state = module.stat()
    has_drgn = find_spec("drgn") is not None  # Without it less can be known.
    words = (_VERSION, str(module), state.st_size, state.st_mtime_ns, has_drgn)
    kept = cache_folder() / "white-box" / f"{sha256(repr(words).encode()).hexdigest()}.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        text = msgspec.json.encode(_described(kernel, module))
        with written_bytes(kept) as file:
            file.write(text)
    return kept


def _described(kernel: Kernel, module: Path) -> Description:
    vm_list = within(read("kvm", kernel.modules["kvm"]).content)
    if module.suffix in (".ko", ".debug"):
        try:
            found = from_debug_info(module)
        except CannotLookError as error:
            return Description(vm_list=vm_list, why=str(error))
        return msgspec.structs.replace(found, vm_list=vm_list)
    return Description(vm_list=vm_list)
