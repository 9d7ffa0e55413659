"""What becomes of a test where KVM cannot be used, or does not keep its word."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def for_kvm() -> Iterator[None]:
    """Skip the test if what is done here finds no KVM, or fail it if VMM_REQUIRE_KVM is set.

    A kernel that refuses what every VMM needs, or answers as none may, fails the test in any case.
    """
    try:
        yield
    except ImportError as error:
        raise _lacking(error) from None
    except (OSError, RuntimeError) as error:
        if _is_of_kernel(error):
            raise pytest.fail.Exception(str(error), pytrace=False) from None
        raise _lacking(error) from None


def _is_of_kernel(error: Exception) -> bool:
    """Whether the kernel is at fault, and not what this host lacks."""
    from kvm_abi.raw import KvmError
    from kvm_abi.uapi import TAKEN

    if isinstance(error, KvmError):
        return (error.request, error.errno) != TAKEN
    return isinstance(error, RuntimeError)


def _lacking(error: Exception) -> BaseException:
    reason = f"needs KVM: {error}"
    if os.environ.get("VMM_REQUIRE_KVM"):
        return pytest.fail.Exception(reason, pytrace=False)
    return pytest.skip.Exception(reason)
