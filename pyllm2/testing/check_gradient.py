"""`check_gradient`: a backward of yours against finite differences of its forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pyllm2.testing.gradcheck import ENTRIES, Finding, check_array

SEEDS = 3  # drawn dout per call


def check_gradient(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    *inputs: Any,
    seed: int = 0,
    entries: int = ENTRIES,
) -> Finding:
    """Check an op that has no name here: no bound and no law is needed.

    forward(*inputs) -> out, an array   backward(dout, *inputs) -> the gradient of every input that
    is an array of floats, in their order, as a tuple; one alone may be returned as it is.
    Both are called in float64, where differences are good to about nine digits: they must not
    convert to float32. Other inputs, such as ids and sizes, are passed on.

    seed: of dout and of the entries   entries: compared per input, at most

    Returns a Finding, whose `relative` is the largest error found. Raises AssertionError naming the
    input and the entry, ValueError for inputs without an array of floats.
    """
    wide = [_wide(a) for a in inputs]
    floats = [i for i, a in enumerate(wide) if _is_float(a)]
    if not floats:
        raise ValueError("check_gradient: none of the inputs is an array of floats")
    random, finding = np.random.default_rng(seed), Finding(_name(backward))
    for _ in range(SEEDS):
        before = [np.array(a, copy=True) for a in wide]
        out = _array("forward", forward(*wide), None)
        dout = random.standard_normal(out.shape)
        gradients = backward(dout, *wide)
        for i, (old, new) in enumerate(zip(before, wide, strict=True)):
            if not np.array_equal(old, new, equal_nan=_is_float(new)):
                raise AssertionError(f"{_name(backward)} or its forward wrote into input {i}")
        found = gradients if isinstance(gradients, tuple | list) else (gradients,)
        if len(found) != len(floats):
            raise AssertionError(
                f"{_name(backward)}: {len(found)} gradients, expected {len(floats)}: one for every "
                f"input that is an array of floats"
            )
        for i, gradient in zip(floats, found, strict=True):
            _array(f"gradient of input {i}", gradient, wide[i].shape)
        for i, gradient in zip(floats, found, strict=True):
            one = Finding(f"input {i}")

            def weighted(dout: Any = dout) -> Any:
                return dout * forward(*wide)

            check_array(one, weighted, wide[i], gradient, random, entries)
            if not one.passed:
                raise AssertionError(
                    f"{_name(backward)}: the gradient of input {i}, shape {wide[i].shape}, is off "
                    f"by {one.relative:.2g} of its largest entry (finite differences)"
                )
            finding.relative = max(finding.relative, one.relative)
            finding.tolerance_used = max(finding.tolerance_used, one.tolerance_used)
    return finding


def _is_float(a: Any) -> bool:
    return isinstance(a, np.ndarray) and a.dtype.kind == "f"


def _wide(a: Any) -> Any:
    return a.astype(np.float64) if _is_float(a) else a


def _array(what: str, found: Any, shape: tuple[int, ...] | None) -> Any:
    if not isinstance(found, np.ndarray | np.generic):
        raise AssertionError(f"{what}: {type(found).__name__}, expected an array")
    if found.dtype != np.float64:
        raise AssertionError(f"{what}: {found.dtype} from float64 inputs, expected float64")
    if shape is not None and found.shape != shape:
        raise AssertionError(f"{what}: shape {found.shape}, expected {shape}")
    return found


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", "backward"))
