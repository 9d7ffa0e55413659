"""Builds the two extension modules; everything else stands in pyproject.toml."""

from setuptools import setup
from setuptools.command.build_ext import build_ext


class BuildExtension(build_ext):
    """Compiles assembler sources too: the compiler's driver knows what to do with them."""

    def build_extensions(self) -> None:
        self.compiler.src_extensions.append(".S")
        super().build_extensions()


setup(
    cffi_modules=["kvm_abi/_build.py:ffibuilder", "guests/_build.py:ffibuilder"],
    cmdclass={"build_ext": BuildExtension},
    # One wheel for CPython 3.11 and newer: both extensions keep to the stable ABI.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
