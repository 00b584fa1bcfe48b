"""How far the results of an op are from its formula, in units of the derived bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyllm2 import backends
from pyllm2.errors import BackendError
from pyllm2.observe.record import Record

Array = NDArray[Any]


def require_bounds() -> None:
    """The bounds are those of the property tests. Raises BackendError without hypothesis."""
    try:
        import hypothesis  # noqa: F401  (pyllm2.testing draws its inputs with it)
    except ImportError:
        raise BackendError(
            "the bounds of ops need hypothesis: pip install 'pyllm2[testing]'"
        ) from None


class Measure(NamedTuple):
    """The largest error of some results.

    share: of the bound, and at that element the rest; above 1 is outside. 0 if every bit is right.
    """

    share: float = 0.0
    error: float = 0.0  # |found - formula in float64|
    bound: float = 0.0
    ulp: float = 0.0  # error / distance of float32 numbers there, the largest of all elements
    at: tuple[int, ...] = ()
    note: str = ""

    @property
    def inside(self) -> bool:
        return self.share <= 1  # NaN is outside

    def worse(self, other: Measure) -> Measure:
        """The one with the larger share; NaN counts as larger."""
        largest = max(self.ulp, other.ulp)
        worst = self if not self.share <= other.share else other
        return worst._replace(ulp=largest)


NOTHING = Measure()


def wrong(note: str) -> Measure:
    """Outside without a number: an exception, a shape."""
    return Measure(share=math.inf, error=math.inf, ulp=math.inf, note=note)


def measure(found: Any, value: Array, error: Array) -> Measure:
    """Compare an array with a float64 value and the error that is allowed.

    NaN is right where NaN is expected, an infinity must be met exactly; where the allowed error is
    infinite, everything is right.
    """
    if not isinstance(found, np.ndarray | np.generic):
        return wrong(f"{type(found).__name__}, expected an array")
    if found.shape != value.shape:
        return wrong(f"shape {found.shape}, expected {value.shape}")
    if not found.size:
        return NOTHING
    value, error = np.broadcast_arrays(value, error)
    with np.errstate(all="ignore"):
        off = np.abs(found.astype(np.float64) - value)
        same = (found == value) | (np.isnan(found) & np.isnan(value)) | np.isposinf(error)
        share = np.where(same, 0.0, off / np.maximum(error, 2.0**-1074))
        share = np.where(same | (off > 0), share, 0.0)
        share = np.where(~same & ~np.isfinite(off), np.inf, share)
        spacing = np.spacing(np.abs(value).astype(np.float32)).astype(np.float64)
        ulp = np.where(same, 0.0, off / spacing)
    at = np.unravel_index(int(np.argmax(share)), share.shape)
    largest_ulp = float(np.nan_to_num(ulp, nan=np.inf).max())
    where = tuple(int(i) for i in at)
    note = "" if found.dtype in (np.float32, np.int8, np.float64) else f"dtype {found.dtype}"
    return Measure(float(share[at]), float(off[at]), float(error[at]), largest_ulp, where, note)


class Judge:
    """Measures the ops of any backend on the inputs of a record."""

    def __init__(self, family: str) -> None:
        require_bounds()
        from pyllm2.testing import tables

        self.family = family
        self._table = {**tables[family], **tables["adamw"]}
        self._specification = backends.ops("numpy", package=family)

    def bounded(self, record: Record) -> list[tuple[Array, Array]] | None:
        """The formula in float64 and the error allowed, for every result; None: no bound known.

        quantize and dequantize have exact results: every backend gives the same bits.
        """
        arguments = tuple(record.inputs.values())
        if record.op in ("quantize", "dequantize"):
            results = _several(getattr(self._specification, record.op)(*arguments))
            return [(r.astype(np.float64), np.zeros(r.shape)) for r in results]
        if record.op not in self._table:
            return None
        with np.errstate(all="ignore"):
            found = self._table[record.op].bound(*arguments)
        from pyllm2.testing import Bounded

        return [found] if isinstance(found, Bounded) else list(found)

    def of_partial_sums(self, record: Record) -> list[tuple[Array, Array]] | None:
        """`bounded` for a kernel that adds parts of a group of int8 products as floats.

        The sum of a group is then no longer exact: with at most C parts, γ_{C+2} · Σ|x · w|, in
        which signs do not cancel within a group.
        """
        if record.op != "matmul_q8":
            return self.bounded(record)
        from pyllm2.testing.bounds import gamma
        from pyllm2.testing.llama2.bounds import matmul_q8

        x, x_scales, w, w_scales, group_size = record.inputs.values()
        value, error = matmul_q8(x, x_scales, w, w_scales, group_size)
        without_signs, _ = matmul_q8(np.abs(x), x_scales, np.abs(w), w_scales, group_size)
        return [(value, error + gamma(x.shape[1] + 2) * np.abs(without_signs))]

    def run(
        self, function: Callable[..., Any], record: Record, bounded: Sequence[tuple[Array, Array]]
    ) -> Measure:
        """Call an op with the inputs of a record, and measure all of its results."""
        arguments = [
            a.copy() if isinstance(a, np.ndarray) and not _is_large(record, n) else a
            for n, a in record.inputs.items()
        ]
        before = [a.copy() if isinstance(a, np.ndarray) else None for a in arguments]
        call = self._table[record.op].call if record.op in self._table else _plain
        try:
            with np.errstate(all="ignore"):
                results = _several(call(function, *arguments))
        except Exception as raised:  # whatever a wrong kernel raises is a finding
            return wrong(f"raises {type(raised).__name__}: {raised}"[:120])
        for name, a, old in zip(record.inputs, arguments, before, strict=True):
            if old is not None and a.tobytes() != old.tobytes() and record.op != "adamw_update":
                return wrong(f"writes into its input {name}")
        if len(results) != len(bounded):
            return wrong(f"{len(results)} results, expected {len(bounded)}")
        worst = NOTHING
        for found, (value, error) in zip(results, bounded, strict=True):
            worst = worst.worse(measure(found, value, error))
        return worst


def _plain(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _several(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)


def _is_large(record: Record, name: str) -> bool:
    """Whether an input is a weight or part of the cache, which is not copied."""
    origin = record.origins.get(name)
    return origin is not None and origin.record is None
