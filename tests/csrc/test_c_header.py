"""Structs, prototypes and the ABI hash that Python reads from the headers of csrc."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from pyllm2.compiling import c_build
from pyllm2.compiling.c_header import parse, read_interface
from pyllm2.compiling.c_library import KeptBuffers, aligned_floats, library, writeable
from tests.csrc.program import CSRC, compile_c

pytestmark = pytest.mark.skipif(
    c_build.why_not() is not None, reason=f"backend 'c' {c_build.why_not()}"
)
HEADERS = sorted(CSRC.rglob("*.h"))


# ---- structs --------------------------------------------------------------------------------


def test_structs_have_the_layout_of_the_compiler(tmp_path):
    """Size of every struct, offset and size of every field."""
    structs = {}
    for header in HEADERS:
        structs |= read_interface(header).structs
    statements, expected = [], []
    for name, struct in structs.items():
        statements.append(f"P({name}, sizeof({name}));")
        expected.append(f"{name} {ctypes.sizeof(struct)}")
        for field, _ in struct._fields_:
            at = getattr(struct, field)
            statements.append(f"P({name}.{field}, offsetof({name}, {field}));")
            statements.append(f"P({name}.{field}, sizeof((({name} *)0)->{field}));")
            expected += [f"{name}.{field} {at.offset}", f"{name}.{field} {at.size}"]
    assert len(structs) > 10
    includes = "".join(f'#include "{header}"\n' for header in HEADERS)
    (tmp_path / "layout.c").write_text(
        f"#include <stddef.h>\n#include <stdio.h>\n{includes}"
        '#define P(name, n) printf("%s %zu\\n", #name, (size_t)(n))\n'
        f"int main(void) {{ {' '.join(statements)} return 0; }}"
    )
    compile_c(tmp_path / "layout", tmp_path / "layout.c")
    assert subprocess.check_output([tmp_path / "layout"], text=True).splitlines() == expected


@pytest.mark.parametrize("header", HEADERS, ids=lambda path: path.name)
def test_every_declaration_of_a_header_is_read(header):
    """Each line that closes a struct or begins a prototype."""
    read, lines = read_interface(header), header.read_text().splitlines()
    for line in lines:
        if line.startswith("} "):
            assert line[2:-1] in read.structs
        if line[:1].isalpha() and "(" in line and not line.startswith("static "):
            assert line.partition("(")[0].split()[-1].lstrip("*") in read.functions


def test_fields_keep_their_arrays_alive_and_are_checked():
    """A struct is made from contiguous arrays of the right type, read-only or not."""
    gpt2 = library("gpt2", "strict")
    params = gpt2.struct("parameters", wte=np.ones((2, 3), np.float32))
    assert params.wte == params.kept["wte"].ctypes.data
    assert params.wpe is None
    for bad in (np.ones(3), np.ones((2, 4), np.float32)[:, ::2], 1.0):
        with pytest.raises(TypeError, match=r"gpt2_parameters.wte: expected a contiguous float32"):
            gpt2.struct("parameters", wte=bad)


def test_a_struct_may_contain_a_struct():
    """By value; a parameter is an address."""
    read = parse(
        "typedef struct { int32_t a; const float *x; } inner;\n"
        "typedef struct { inner first; int64_t b; } outer;\n"
        "void f(outer *o, const inner *i);\n"
    )
    x = np.ones(2, np.float32)
    outer = read.structs["outer"](first=read.structs["inner"](a=3, x=x), b=4)
    assert (outer.first.a, outer.first.x, outer.b) == (3, x.ctypes.data, 4)
    with pytest.raises(TypeError, match=r"outer.first: expected a inner, got outer"):
        read.structs["outer"](first=outer)
    assert [p.name for p in read.functions["f"].parameters] == ["o", "i"]


@pytest.mark.parametrize(
    "text", ["typedef struct { float x[3]; } s;", "void f(char **x);", "size_t f(void);"]
)
def test_a_type_that_python_cannot_pass_is_an_error(text):
    """Rather than a function that is called with a guess."""
    with pytest.raises(ValueError, match="not a type that Python can pass"):
        parse(text)


# ---- calls ----------------------------------------------------------------------------------


def rmsnorm_arguments():
    x, weight = np.ones((2, 3), np.float32), np.ones(3, np.float32)
    return [np.empty_like(x), x, weight, 2, 3, 1e-5]


def test_a_wrong_number_of_arguments_is_an_error():
    """With too few, C would read whatever the registers hold."""
    rmsnorm = library("llama2", "strict").rmsnorm
    rmsnorm(*rmsnorm_arguments())
    for arguments in (rmsnorm_arguments()[:-1], [*rmsnorm_arguments(), 3], []):
        with pytest.raises(TypeError, match=r"arguments for void llama2_rmsnorm\(float \*out, "):
            rmsnorm(*arguments)


def test_some_arguments_may_be_given_once_for_all_calls():
    """The others come in their order, and are checked; arrays are kept."""
    out, x, weight, T, C, epsilon = rmsnorm_arguments()
    rmsnorm = library("llama2", "strict").prepared("rmsnorm", T=T, weight=weight.copy())
    rmsnorm(out, 2 * x, C, epsilon)
    np.testing.assert_allclose(out, 1, rtol=1e-5)
    for wrong in ((out, x, C), (out, x, C, epsilon, 1)):
        with pytest.raises(TypeError, match=r"arguments for void llama2_rmsnorm"):
            rmsnorm(*wrong)
    with pytest.raises(TypeError, match="llama2_rmsnorm: x: expected a contiguous float32 array"):
        rmsnorm(out, x.astype(float), C, epsilon)


READ_ONLY = np.ones((2, 3), np.float32)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("index", "bad", "message"),
    [
        (0, READ_ONLY, "out: expected a contiguous writeable float32 array, got .* read-only"),
        (0, [1.0], "out: expected a contiguous writeable float32 array, got list"),
        (1, np.ones((2, 3)), "x: expected a contiguous float32 array, got float64"),
        (1, np.ones((2, 6), np.float32)[:, ::2], r"x: .* got float32, strides \(24, 8\)"),
        (1, np.ones((2, 3), np.int32), "x: expected a contiguous float32 array, got int32"),
        (3, 2.0, "T: 'float' object cannot be interpreted as an integer"),
        (4, np.ones(3), "C: .*integer"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_an_error(index, bad, message):
    """It names the function, the parameter and what was found."""
    arguments = rmsnorm_arguments()
    arguments[index] = bad
    with pytest.raises(TypeError, match=f"^llama2_rmsnorm: {message}"):
        library("llama2", "strict").rmsnorm(*arguments)


def test_an_input_may_be_read_only():
    """C only reads through a pointer to const."""
    arguments = rmsnorm_arguments()
    arguments[1] = READ_ONLY
    library("llama2", "strict").rmsnorm(*arguments)
    with pytest.raises(TypeError, match="read-only"):
        writeable(READ_ONLY)


def test_a_struct_of_another_type_is_an_error():
    gpt2 = library("gpt2", "strict")
    with pytest.raises(TypeError, match="config: expected a gpt2_config, got gpt2_parameters"):
        gpt2.parameter_floats(gpt2.struct("parameters"))


def test_a_function_that_no_header_declares_is_an_error():
    with pytest.raises(AttributeError, match="no header declares gpt2_nonsense"):
        library("gpt2", "strict").nonsense()


# ---- the hash -------------------------------------------------------------------------------

BEFORE = "typedef struct {\n    int32_t a;  /* one */\n} s;\nvoid f(const s *x, float y);\n"


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("one", "two", True),
        ("x, float", "x,\n  float", True),
        ("int32_t a", "int64_t a", False),
        ("int32_t a;", "int32_t a;  int32_t b;", False),
        ("float y", "double y", False),
        ("const s", "s", False),
        ("void f", "void g", False),
    ],
)
def test_a_changed_header_changes_the_hash(old, new, same):
    """A changed comment or line break does not."""
    after = BEFORE.replace(old, new)
    assert after != BEFORE
    assert (parse(after).abi == parse(BEFORE).abi) == same


def test_the_hash_covers_the_headers_that_a_header_includes(tmp_path: Path) -> None:
    """training.h includes model.h, which includes ops.h; a circle is no trouble."""
    (tmp_path / "a.h").write_text('#include "b/b.h"\nvoid f(s *x);\n')
    (tmp_path / "b").mkdir()
    found = []
    for field in ("int32_t a", "int64_t a"):
        struct = f"typedef struct {{ {field}; }} s;"
        (tmp_path / "b" / "b.h").write_text(f'#include "../a.h"\n{struct}\n')
        read_interface.cache_clear()
        found.append(read_interface(tmp_path / "a.h"))
    assert found[0].abi != found[1].abi
    assert list(found[0].structs) == ["s"]


@pytest.mark.parametrize("name", c_build.SOURCES)
def test_a_library_answers_the_hash_of_its_headers(name: str) -> None:
    assert library(name, "strict").abi() == c_build.interface(name).abi > 0


# ---- buffers --------------------------------------------------------------------------------


def test_buffers_of_the_latest_shape_are_kept():
    """Another shape replaces them; the old ones are freed first."""
    alive: list[int] = []

    class Made:
        def __init__(self, n: int) -> None:
            assert alive == []
            alive.append(n)

        def __del__(self) -> None:
            alive.clear()

    buffers = KeptBuffers(Made)
    with buffers.of(1) as first:
        pass
    with buffers.of(1) as again:
        assert again is first
    del first, again
    with buffers.of(2):
        assert alive == [2]


def test_buffers_are_for_one_thread_at_a_time():
    """Another thread that asks for them waits until the block ends."""
    buffers, entered = KeptBuffers(list), []

    def enter():
        with buffers.of():
            entered.append("other")

    other = threading.Thread(target=enter)
    with buffers.of():
        other.start()
        other.join(timeout=0.1)
        assert entered == []
    other.join()
    assert entered == ["other"]


# ---- the sources ----------------------------------------------------------------------------


def test_every_file_includes_what_it_needs():
    """Each file compiles by itself, as C99, without a warning."""
    flags = "-std=c99 -Wall -Wextra -pedantic -Werror -Wno-unused-function -fsyntax-only".split()
    compile_c(os.devnull, *flags, *sorted(CSRC.rglob("*.c")))


@pytest.mark.parametrize("n", [1, 17, 1000])
def test_buffers_begin_on_a_cache_line(n):
    """Also where NumPy's own memory does not."""
    kept = [aligned_floats(n) for _ in range(8)]
    assert all(a.ctypes.data % 64 == 0 and a.shape == (n,) for a in kept)
