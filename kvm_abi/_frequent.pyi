from collections.abc import Callable

def abi_set_user_memory_region(
    fd: int,
    slot: int,
    flags: int,
    guest_phys_addr: int,
    memory_size: int,
    userspace_addr: int,
    /,
) -> int: ...
def abi_set_user_memory_regions(fd: int, regions: bytes, /) -> tuple[int, int]: ...
def abi_run(fd: int, address: int, /) -> int: ...
def put_before(
    method: Callable[..., None],
    name: str,
    described: str,
    types: tuple[type, type, type],
    /,
) -> None: ...

class VmFields: ...
class PagesFields: ...
class AddressFields: ...
