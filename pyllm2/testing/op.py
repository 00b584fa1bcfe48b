"""A row of the table of ops, and how a function is checked against it."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException
from numpy.typing import ArrayLike, DTypeLike, NDArray

from pyllm2.testing.bounds import Bounded

Array = NDArray[np.float32]
Law = Callable[..., None]
LARGEST_PRINTED = 200  # elements of an array in an error message


def plain_call(function: Callable[..., Any], *inputs: Any) -> Any:
    """The usual call: an op returns its results and does not write into its inputs."""
    return function(*inputs)


@dataclass(frozen=True)
class Op:
    """One row: a strategy for the inputs, a bound on the error, laws of the result.

    bound: called with the inputs, returns a `Bounded`, or a tuple of them for several results
    laws: functions of (op, *inputs) that raise AssertionError
    optional: how many of the last inputs a function need not take: the original has not got them
    call: how to get the results out of an op that writes into its inputs
    """

    name: str
    inputs: st.SearchStrategy[tuple[Any, ...]]
    bound: Callable[..., Any]
    laws: list[Law] = field(default_factory=list)
    call: Callable[..., Any] = plain_call
    dtype: DTypeLike = np.float32
    optional: int = 0

    def without(self, inputs: int) -> Op:
        """The row for a function that does not take that many of the last inputs."""
        drawn = self.inputs.map(lambda all_of_them: all_of_them[: len(all_of_them) - inputs])
        return replace(self, inputs=drawn, optional=self.optional - inputs) if inputs else self

    def left_out_by(self, function: Callable[..., Any]) -> int:
        """How many of the optional inputs a function does not take."""
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # of a function without a signature
            return 0
        if not self.optional or any(p.kind is p.VAR_POSITIONAL for p in parameters):
            return 0
        positional = [
            p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        return min(self.optional, max(0, len(self.arguments) - len(positional)))

    @property
    def arguments(self) -> list[str]:
        """Names of the inputs."""
        return [name for name in inspect.signature(self.bound).parameters if name != "growth"]


class OutsideBoundError(AssertionError):
    """Results of the right type and shape that are outside their bounds."""


@dataclass
class Held:
    """What was checked without a fault. `str(held)` is a line about it."""

    name: str
    examples: int = 0
    share: float = 0.0  # largest error, as a share of its bound

    def __str__(self) -> str:
        return f"{self.name}: {self.examples} examples, at most {self.share:.3f} of the bound"


def assert_close(
    found: Array, bounded: Bounded, what: str = "result", dtype: DTypeLike = np.float32
) -> None:
    """Every element of `found` lies within its own bound.

    NaN is accepted where NaN is expected, and nothing else is there; an expected infinity must be
    met exactly. Where the error is infinite any value is accepted.
    """
    value, error = np.broadcast_arrays(*bounded)
    if not isinstance(found, np.ndarray | np.generic):
        raise AssertionError(f"{what}: {type(found).__name__}, expected an array")
    if found.shape != value.shape:
        raise AssertionError(f"{what}: shape {found.shape}, expected {value.shape}")
    if found.dtype != dtype:
        raise AssertionError(f"{what}: dtype {found.dtype}, expected {np.dtype(dtype)}")
    with np.errstate(invalid="ignore"):
        off = np.abs(found.astype(np.float64) - value)
        inside = off <= error
    inside |= (found == value) | (np.isnan(found) & np.isnan(value)) | np.isposinf(error)
    if inside.all():
        return
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = np.where(inside, -1.0, np.nan_to_num(off / error, nan=np.inf, posinf=np.inf))
    at = tuple(int(i) for i in np.unravel_index(np.argmax(share), share.shape))
    if np.isfinite(share[at]):
        distance = f", {share[at]:.3g} times its bound of {error[at]:.3g} away"
    else:
        distance = f" ± {error[at]:.3g}" if error[at] else " exactly"
    raise OutsideBoundError(
        f"{what}: values are off: element {at} is {found[at]!s}, expected {value[at]!s}{distance}; "
        f"{int((~inside).sum())} of {inside.size} elements are off"
    )


def assert_all_close(
    found: Any, bounded: Any, what: str = "result", dtype: DTypeLike = np.float32
) -> None:
    """`assert_close` for one result, or for each of several in a tuple."""
    if isinstance(bounded, Bounded):
        found, bounded = (found,), (bounded,)
    if not isinstance(found, tuple | list) or len(found) != len(bounded):
        several = isinstance(found, tuple | list)
        got = f"{len(found)} results" if several else type(found).__name__
        raise AssertionError(f"{what}: {got}, expected a tuple of {len(bounded)} arrays")
    for n, (one, expected) in enumerate(zip(found, bounded, strict=True)):
        assert_close(one, expected, f"{what}, result {n}" if len(bounded) > 1 else what, dtype)


def assert_same(found: Array, expected: Any, law: str) -> None:
    """Equal to the bit, except for the sign of zero."""
    np.testing.assert_array_equal(found, expected, err_msg=law)


def assert_near(found: ArrayLike, expected: ArrayLike, error: ArrayLike, law: str) -> None:
    """Within an absolute error. For sums of results: the sum of the errors of their elements."""
    off = np.abs(np.asarray(found, np.float64) - np.asarray(expected, np.float64))
    assert (off <= np.asarray(error, np.float64) + 2.0**-1074).all(), f"{law}: off by {np.max(off)}"


def hold(op: Op, functions: Mapping[str, Callable[..., Any]]) -> Held:
    """Check functions against one row: what they do to their inputs, bounds, laws.

    Every function is called with the same drawn inputs. Its name in `functions` begins the error.

    Optional inputs that one of them does not take are left out for all. Warnings of the functions
    are shown once each, at the end.

    Raises AssertionError, with the smallest inputs that hypothesis finds as a note.
    """
    op = op.without(max(map(op.left_out_by, functions.values()), default=0))
    held = Held(", ".join(functions))
    drawn: list[tuple[Any, ...]] = []
    phases = [phase for phase in settings().phases if phase is not Phase.explain]

    @settings(deadline=None, report_multiple_bugs=False, phases=phases)
    @given(op.inputs)
    def property_of_op(inputs: tuple[Any, ...]) -> None:
        drawn[:] = [tuple(a.copy() if isinstance(a, np.ndarray) else a for a in inputs)]
        bounded = op.bound(*inputs)
        for name, function in functions.items():
            held.share = max(held.share, _hold_example(op, name, function, inputs, bounded))
        held.examples += 1

    try:
        with _warnings_once():
            property_of_op()
    except HypothesisException:  # of the search itself: results differ from call to call, ...
        raise
    except Exception as error:
        # The example that hypothesis reports is the last that ran.
        error.__notes__ = [_as_code(op, drawn[0])] if drawn else []
        raise
    return held


@contextmanager
def _warnings_once() -> Iterator[None]:
    """Collect warnings, and show each kind once per place at the end, however often it came."""
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield
    finally:
        once = {(str(w.message), w.category, w.filename, w.lineno): w for w in caught}
        for w in once.values():
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)


def _hold_example(
    op: Op, name: str, function: Callable[..., Any], inputs: tuple[Any, ...], bounded: Any
) -> float:
    """Check one example; returns the largest error as a share of its bound."""
    _check_arity(op, name, function, inputs)
    before = [a.tobytes() if isinstance(a, np.ndarray) else None for a in inputs]
    found = op.call(function, *inputs)
    for argument, a, old in zip(op.arguments, inputs, before, strict=False):
        if old is not None and a.tobytes() != old:
            raise AssertionError(f"{name} wrote into its input {argument}")
    try:
        assert_all_close(found, bounded, name, op.dtype)
    except OutsideBoundError as error:
        broken = [law.__name__ for law in op.laws if _breaks(law, function, inputs)]
        if broken:
            raise OutsideBoundError(f"{error}\nbroken laws: {', '.join(broken)}") from None
        raise
    for law in op.laws:
        try:
            law(function, *inputs)
        except AssertionError as error:
            raise AssertionError(f"{name} breaks the law {law.__name__}: {error}") from error
    return _share(found, bounded)


def _check_arity(op: Op, name: str, function: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
    """Raises AssertionError for a function that does not take the arguments of the op."""
    if op.call is not plain_call:
        return
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # none, as of a builtin
        return
    try:
        signature.bind(*inputs)
    except TypeError as error:
        arguments = ", ".join(op.arguments[: len(inputs)])
        raise AssertionError(f"{name} is called with ({arguments}): {error}") from None


def _share(found: Any, bounded: Any) -> float:
    """The largest error as a share of its bound, where that is finite and not 0."""
    pairs = [(found, bounded)] if isinstance(bounded, Bounded) else zip(found, bounded, strict=True)
    largest = 0.0
    for one, (value, error) in pairs:
        with np.errstate(all="ignore"):
            share = np.abs(np.asarray(one, np.float64) - value) / error
        share = share[np.isfinite(share)]
        largest = max(largest, float(share.max(initial=0.0)))
    return largest


def _breaks(law: Law, function: Callable[..., Any], inputs: tuple[Any, ...]) -> bool:
    try:
        law(function, *inputs)
    except Exception:  # whatever a wrong function raises
        return True
    return False


def _as_code(op: Op, inputs: tuple[Any, ...]) -> str:
    """The inputs as lines of Python; a large array by its shape only."""
    lines = ["smallest inputs found:"]
    for argument, a in zip(op.arguments, inputs, strict=False):
        if not isinstance(a, np.ndarray):
            lines.append(f"{argument} = {a!r}")
        elif a.size > LARGEST_PRINTED:
            lines.append(f"{argument}: {a.dtype} array of shape {a.shape}, too large to print")
        else:
            values = re.sub(r"\b(nan|inf)\b", r"np.\1", str(a.tolist()))
            lines.append(f"{argument} = np.array({values}, np.{a.dtype})")
    return "\n".join(lines)
