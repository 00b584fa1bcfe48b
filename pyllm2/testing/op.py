"""A row of the table of ops, and how a function is held to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import DTypeLike, NDArray

from pyllm2.testing.bounds import Bounded

Array = NDArray[np.float32]
Law = Callable[..., None]


def plain_call(function: Callable[..., Any], *inputs: Any) -> Any:
    """The usual way: an op returns and leaves its inputs alone."""
    return function(*inputs)


@dataclass(frozen=True)
class Op:
    """One row: where inputs come from, what the result may be off by, what must hold.

    call: for an op that writes into its inputs, how to get results out of it all the same.
    """

    name: str
    inputs: st.SearchStrategy[tuple[Any, ...]]
    bound: Callable[..., Any]
    laws: list[Law] = field(default_factory=list)
    call: Callable[..., Any] = plain_call
    dtype: DTypeLike = np.float32


def assert_close(
    found: Array, bounded: Bounded, what: str = "result", dtype: DTypeLike = np.float32
) -> None:
    """Every element within its own bound. NaN only where NaN is expected, and there nothing else.

    An infinite value is met exactly. Where the error is infinite nothing is promised.
    """
    assert found.shape == bounded.value.shape, (
        f"{what}: shape {found.shape}, expected {bounded.value.shape}"
    )
    assert found.dtype == dtype, f"{what}: dtype {found.dtype}, expected {np.dtype(dtype)}"
    value, error = bounded.value, bounded.error
    with np.errstate(invalid="ignore"):
        inside = np.abs(found.astype(np.float64) - value) <= error
    inside |= (found == value) | (np.isnan(found) & np.isnan(value)) | np.isposinf(error)
    if not inside.all():
        at = tuple(int(i) for i in np.argwhere(~inside)[0])
        raise AssertionError(
            f"{what}: element {at} is {found[at]!r}, expected {value[at]!r} "
            f"± {error[at]:.3g}; {int((~inside).sum())} of {inside.size} are off"
        )


def assert_all_close(
    found: Any, bounded: Any, what: str = "result", dtype: DTypeLike = np.float32
) -> None:
    """`assert_close` for one result, or for several in a tuple."""
    if isinstance(bounded, Bounded):
        found, bounded = (found,), (bounded,)
    for n, (one, expected) in enumerate(zip(found, bounded, strict=True)):
        assert_close(one, expected, f"{what}, result {n}" if n else what, dtype)


def assert_same(found: Array, expected: Any, law: str) -> None:
    """To the bit, but for the sign of zero."""
    np.testing.assert_array_equal(found, expected, err_msg=law)


def hold(op: Op, function: Callable[..., Any]) -> None:
    """Shape, dtype, inputs left alone, bound and laws, on many drawn inputs.

    Raises AssertionError with the smallest inputs that hypothesis finds.
    """

    @settings(deadline=None)  # the first call may compile
    @given(op.inputs)
    def property_of_op(inputs: tuple[Any, ...]) -> None:
        kept = [a.copy() if isinstance(a, np.ndarray) else a for a in inputs]
        found = op.call(function, *inputs)
        assert_all_close(found, op.bound(*inputs), op.name, op.dtype)
        for before, after in zip(kept, inputs, strict=True):
            np.testing.assert_array_equal(after, before, err_msg=f"{op.name} wrote into its input")
        for law in op.laws:
            law(function, *inputs)

    property_of_op()
