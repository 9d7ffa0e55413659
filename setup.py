"""Builds the three extension modules; everything else stands in pyproject.toml."""

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class BuildExtension(build_ext):
    """Compiles assembler sources too: the compiler's driver knows what to do with them."""

    def build_extensions(self) -> None:
        self.compiler.src_extensions.append(".S")
        super().build_extensions()


FREQUENT = Extension(
    "kvm_abi._frequent",
    ["kvm_abi/frequent.c"],
    depends=["kvm_abi/fields.c", "kvm_abi/shortcut.c", "kvm_abi/ioctls.c", "kvm_abi/kvm.h"],
    py_limited_api=True,
)

setup(
    cffi_modules=["kvm_abi/_build.py:ffibuilder", "guests/_build.py:ffibuilder"],
    ext_modules=[FREQUENT],
    cmdclass={"build_ext": BuildExtension},
    # One wheel for CPython 3.11 and newer: the extensions keep to the stable ABI.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
