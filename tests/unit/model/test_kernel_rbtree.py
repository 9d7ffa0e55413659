"""The tree that is drawn, held against the kernel's own `rb_insert_color()` and `rb_erase()`."""

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernelsource import extracted
from tests.unit.model.test_gfntree import nodes
from vmm.model.gfntree import GfnTree

PROGRAM = Path(__file__).with_name("kernel_rbtree.c")
SOURCES = (
    "tools/lib/rbtree.c",
    "tools/include/linux/rbtree.h",
    "tools/include/linux/rbtree_augmented.h",
)
HEADERS = {
    "kernel": """
        #include <stdbool.h>
        #include <stddef.h>
        #include <linux/compiler.h>
        #define container_of(p, type, member) ((type *)((char *)(p) - offsetof(type, member)))
    """,
    "stddef": "#include <stddef.h>\n",
    "export": "#define EXPORT_SYMBOL(name)\n",
    "compiler": """
        #define WRITE_ONCE(place, value) ((place) = (value))
        #define READ_ONCE(place) (place)
        #define unlikely(it) (it)
        #undef __always_inline
        #define __always_inline inline __attribute__((always_inline))
    """,
}
"""What the kernel's file needs of headers that would bring the rest of the kernel along."""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that keeps slots in the kernel's tree."""
    folder = extracted(tmp_path_factory.mktemp("kernel"), *SOURCES)
    include = folder / "tools/include/linux"
    for name, text in HEADERS.items():
        (include / f"{name}.h").write_text(text)
    program = folder / "kept"
    command = ["cc", "-std=gnu11", "-O1", "-I", str(include.parent), "-o", str(program)]
    done = subprocess.run(
        [*command, PROGRAM, folder / SOURCES[0]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return program


def changes(seed: int) -> Iterator[tuple[int, int | None]]:
    """Yield creations, moves and deletions: a slot, and its new gfn; None deletes it."""
    dice = random.Random(seed)
    there: dict[int, int] = {}
    for _ in range(dice.choice((20, 100, 600))):
        number = dice.randrange(dice.choice((4, 16, 64)))
        if number in there and dice.random() < 0.4:
            del there[number]
            yield number, None
        elif (gfn := dice.randrange(1000)) not in there.values():
            there[number] = gfn
            yield number, gfn


@pytest.mark.long
def test_it_has_the_same_shape_and_colours_after_every_change(kernel: Path) -> None:
    for seed in range(200):
        tree, expected, asked = GfnTree(), [], []
        for number, gfn in changes(seed):
            if gfn is None:
                tree.erase(number)
                asked.append(f"erase {number}")
            else:
                tree.put(number, gfn)
                asked.append(f"put {number} {gfn}")
            shape = (f"{n.slot}:{n.parent}:{n.left}:{n.right}:{n.black:d} " for n in nodes(tree))
            expected.append("".join(shape))
        done = subprocess.run(
            [kernel], input="\n".join(asked), capture_output=True, text=True, check=True
        )
        kernels = done.stdout.splitlines()
        for step, (theirs, ours) in enumerate(zip(kernels, expected, strict=True)):
            assert ours == theirs, f"seed {seed}, {asked[step]}"
