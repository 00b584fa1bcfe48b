"""The kernel cache: the name of a kernel changes with the source that it was compiled from."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba", reason="needs numba")

from pyllm2 import backends
from pyllm2.compiling import dependencies, numba_build

# A package of kernels: `main.double` reaches every file but `other`, each in a different way.
FILES = {
    "__init__": "",
    "main": """
        from pyllm2.compiling.numba_build import device, kernel
        from twice import constants, emitted, helper, indirect, other, shapes
        from twice.constants import FACTOR

        @kernel(parallel=True)
        def double(x):
            size = shapes.Size(x)
            return helper.times(emitted.same(size.n), FACTOR) + indirect.zero()

        @kernel()
        def another(x):
            return other.same(x)
    """,
    "constants": "from twice.origin import FACTOR",
    "origin": "FACTOR = 2",
    "shapes": """
        from typing import NamedTuple

        class Size(NamedTuple):
            n: int
    """,
    "helper": """
        from pyllm2.compiling.numba_build import device

        @device()
        def times(x, y):
            return x * y
    """,
    "indirect": """
        from pyllm2.compiling.numba_build import device
        from twice import deep

        def made_of(function):
            @device()
            def zero():
                return function() - 1
            return zero

        zero = made_of(deep.one)
    """,
    "deep": """
        from pyllm2.compiling.numba_build import device

        @device("contract")
        def one():
            return 1
    """,
    "emitted": """
        from numba import types
        from numba.extending import intrinsic
        from twice import emitting

        @intrinsic
        def same(typing_context, x):
            def generate(context, builder, signature, arguments):
                return emitting.emit(arguments)
            return types.int64(types.int64), generate
    """,
    "emitting": """
        def emit(arguments):
            return arguments[0]
    """,
    "other": """
        from pyllm2.compiling.numba_build import device

        @device()
        def same(x):
            return x
    """,
}
REACHED = sorted(set(FILES) - {"__init__", "constants", "origin", "other"})


def write(folder: Path, **edits: Callable[[str], str]) -> Path:
    """Write the package to a folder, with edits per file."""
    (folder / "twice").mkdir(parents=True)
    for name, text in FILES.items():
        lines = [line[8:] if line.startswith("        ") else line for line in text.split("\n")]
        edit = edits.get(name, str)
        (folder / "twice" / f"{name}.py").write_text(edit("\n".join(lines)))
    return folder


def cache_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The cache name of `double`, imported from this folder."""
    for module in [m for m in sys.modules if m.partition(".")[0] == "twice"]:
        del sys.modules[module]
    dependencies.read_files.cache_clear()
    with monkeypatch.context() as patch:
        patch.syspath_prepend(folder)
        name: str = importlib.import_module("twice.main").double.cache_name
    return name


def commented(source: str) -> str:
    return source + "\n# edited\n"


@pytest.mark.parametrize("name", REACHED)
def test_editing_a_reached_file_changes_the_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel reaches device functions, intrinsics, their closures, and classes."""
    before = cache_name(write(tmp_path / "before"), monkeypatch)
    after = cache_name(write(tmp_path / "after", **{name: commented}), monkeypatch)
    assert before != after
    assert before.startswith("double_parallel_")


def test_editing_an_unreached_file_keeps_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is only imported does not count, nor does the path of the package."""
    before = cache_name(write(tmp_path / "before"), monkeypatch)
    after = cache_name(write(tmp_path / "after", other=commented), monkeypatch)
    assert before == after


def test_the_value_of_a_constant_changes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numba compiles globals into the kernel, so a changed value changes the name."""
    before = cache_name(write(tmp_path / "before"), monkeypatch)
    edit = {"origin": lambda source: source.replace("2", "3")}
    assert before != cache_name(write(tmp_path / "after", **edit), monkeypatch)


def test_a_file_edited_after_its_import_keeps_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running process compiles the source that it imported, and names it so."""
    folder = write(tmp_path)
    for module in [m for m in sys.modules if m.partition(".")[0] == "twice"]:
        del sys.modules[module]
    dependencies.read_files.cache_clear()
    monkeypatch.syspath_prepend(folder)
    main = importlib.import_module("twice.main")
    (folder / "twice" / "helper.py").write_text("# edited\n")
    edited = main.double.cache_name
    other = cache_name(write(tmp_path / "unedited"), monkeypatch)
    assert edited == other


def test_only_numba_build_uses_njit() -> None:
    """A kernel jitted elsewhere would not have a cache name of its source."""
    package = Path(dependencies.__file__).parents[1]
    jitting = [path.name for path in package.rglob("*.py") if "njit" in path.read_text()]
    assert jitting == ["numba_build.py"]


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT", "0") != "0", reason="compiles nothing")
def test_a_stale_kernel_is_not_run(tmp_path: Path) -> None:
    """After an edit of a reached file, a second process compiles instead of using the cache."""
    folder, cache = write(tmp_path / "package"), tmp_path / "cache"

    def result() -> tuple[str, int]:
        """The kernel's result in a new process, and the number of kernels in the cache."""
        env = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(folder)}
        command = [sys.executable, "-c", "from twice.main import another; print(another(21))"]
        found = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        return found.stdout.strip(), len(list(cache.rglob("*.nbc")))

    assert result() == ("21", 1)
    assert result() == ("21", 1)  # from the cache
    other = folder / "twice" / "other.py"
    other.write_text(other.read_text().replace("return x", "return 2 * x"))
    assert result() == ("42", 2)


@pytest.mark.parametrize("package", ["llama2", "gpt2", "training"])
def test_kernels_are_loaded_once_per_process(package: str) -> None:
    """Ops with different numbers of threads share their kernels; loading one takes 20 ms."""
    backends.ops("numba", 1, package)
    made = numba_build._built.cache_info().misses
    assert backends.ops("numba", 1, package) is backends.ops("numba", 1, package)
    backends.ops("numba", 2, package)
    assert numba_build._built.cache_info().misses == made


LOAD = """
import sys
import numpy as np
from pyllm2 import backends
numba, numpy = backends.ops("numba-strict"), backends.ops("numpy")
x = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
same = [np.allclose(numba.softmax(x), numpy.softmax(x))]
light = "numba.np.linalg" not in sys.modules
same.append(np.allclose(numba.swiglu(x, 2 * x), numpy.swiglu(x, 2 * x)))
print(same, light)
"""


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT", "0") != "0", reason="compiles nothing")
def test_a_kernel_from_disk_does_not_load_what_compiling_needs(tmp_path: Path) -> None:
    """That takes most of the time; a kernel that is compiled afterwards finds it all the same."""
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def found() -> str:
        command = [sys.executable, "-c", LOAD]
        return subprocess.run(command, env=env, capture_output=True, text=True).stdout.strip()

    assert found() == "[True, True] False"
    for file in tmp_path.rglob("*swiglu*"):
        file.unlink()
    assert found() == "[True, True] True"


def test_kernels_get_contiguous_arrays_and_wide_indices() -> None:
    """Every argument filled in by name; what is no array, and bytes, as they are."""
    seen = []

    def function(a: object, b: object, n: int = 3, other: object = None) -> None: ...

    call = numba_build.with_one_signature(lambda *a, **named: seen.append((a, named)), function)
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    call(x.T, x[:, ::2], other=np.arange(3, dtype=np.int32)[::2])
    call(b"s", np.zeros(2, np.uint8), 5)
    (first, named), ((text, raw, n), rest) = seen
    for found, expected in zip(first, (x.T, x[:, ::2]), strict=True):
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, expected)
    assert (named["n"], named["other"].dtype, named["other"].tolist()) == (3, np.int64, [0, 2])
    assert named["other"].flags.c_contiguous
    assert (text, raw.dtype, n, rest) == (b"s", np.uint8, 5, {"other": None})
