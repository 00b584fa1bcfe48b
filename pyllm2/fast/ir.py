"""LLVM IR from Python: types, single instructions, and `emits`, which makes a Numba intrinsic.

Functions whose first parameter is `b`, an IR builder, emit code where they are called. Intrinsics
take int64 addresses and counts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.registry import cpu_target
from numba.extending import intrinsic

F32, I1, I8, I32, I64 = ir.FloatType(), *(ir.IntType(bits) for bits in (1, 8, 32, 64))


def processor_features() -> set[str]:
    """What the processor has that Numba compiles for.

    This asks Numba's list of features, which respects NUMBA_CPU_FEATURES and NUMBA_ENABLE_AVX,
    because LLVM aborts the process at an instruction whose feature is not in that list. With
    NUMBA_CPU_NAME only the features in NUMBA_CPU_FEATURES count.
    """
    if config.CPU_NAME is not None and config.CPU_FEATURES is None:
        return set()
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return {name[1:] for name in features.split(",") if name.startswith("+")}


def numbers(element: Any, values: Iterable[Any]) -> Any:
    """A constant vector."""
    constants = [ir.Constant(element, value) for value in values]
    return ir.Constant(ir.VectorType(element, len(constants)), constants)


def call(b: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Call an LLVM intrinsic."""
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), arguments)


def load(b: Any, address: Any, kind: Any, align: int = 4) -> Any:
    value = b.load(b.inttoptr(address, kind.as_pointer()))
    value.align = align
    return value


def store(b: Any, value: Any, address: Any, align: int = 4) -> None:
    b.store(value, b.inttoptr(address, value.type.as_pointer())).align = align


def shuffle(b: Any, x: Any, y: Any, *lanes: int) -> Any:
    """A vector of the given lanes of x and y; y's are numbered after x's."""
    return b.shuffle_vector(x, y, numbers(I32, lanes))


def splat(b: Any, scalar: Any, lanes: int) -> Any:
    """A vector with the scalar in every lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = b.insert_element(undefined, scalar, I32(0))
    return shuffle(b, first, first, *[0] * lanes)


def fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    """x · y + z for vectors of floats."""
    return call(b, f"llvm.fmuladd.v{x.type.count}f32", x.type, x, y, z)


def prefetch(b: Any, address: Any) -> None:
    """Ask for a cache line that will be read."""
    pointer = b.inttoptr(address, I8.as_pointer())
    call(b, "llvm.prefetch.p0", ir.VoidType(), pointer, I32(0), I32(3), I32(1))


def emits(result: Any, **others: Any) -> Callable[[Any], Any]:
    """Decorator: make an intrinsic of a function (builder, *arguments) that emits IR.

    result, others: Numba types of the result and of the named arguments; all other arguments are
    int64.
    """

    def decorate(emit: Any) -> Any:
        _, *names = inspect.signature(emit).parameters

        def typing(typing_context: Any, *_: Any) -> Any:
            def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
                value = emit(b, *arguments)
                return context.get_dummy_value() if value is None else value

            return result(*(others.get(name, types.int64) for name in names)), generate

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(name, kind) for name in ("typing_context", *names)]
        typing.__signature__ = inspect.Signature(parameters)
        typing.__name__, typing.__doc__ = emit.__name__, emit.__doc__
        return intrinsic(typing)

    return decorate


# ---- one number in memory ---------------------------------------------------------------------


@emits(types.float32)
def get_float(b, address):
    """The float32 at an address."""
    return load(b, address, F32)


@emits(types.void, value=types.float32)
def put_float(b, address, value):
    store(b, value, address)


@emits(types.int64)
def get_int(b, address):
    """The int64 at an address."""
    return load(b, address, I64, align=8)


@emits(types.void)
def put_int(b, address, value):
    """Write an int64."""
    store(b, value, address, align=8)


@emits(types.int64)
def atomic_add(b, address, value):
    """Add to the int64 at an address; returns what was there before."""
    return b.atomic_rmw("add", b.inttoptr(address, I64.as_pointer()), value, "seq_cst")


@emits(types.int64)
def atomic_get(b, address):
    """The int64 at an address, with everything that other threads wrote before it.

    All threads see these and `atomic_add` in one order: of two that each add to one number and then
    read the other's, one sees the other's addition.
    """
    return b.load_atomic(b.inttoptr(address, I64.as_pointer()), "seq_cst", 8)
