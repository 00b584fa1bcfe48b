"""The error budget of a model on a prompt: what each op adds, what it carries, what may vary.

    print(explain(model, "Once upon a time"))

A float64 run is the shadow. *adds*: one op's error, with inputs that are the same in both;
*carries*: the error that has come together in a run of its own. Each is measured on the
specification and has its bound. Errors are in ulp of the largest number of the array: its last
place in float32. Then the same for the logits of variants: another order of sums, fused
multiply-add, threads, build flags.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyllm2 import backends
from pyllm2.backends import Engine
from pyllm2.compiling.processors import processors
from pyllm2.inference.language_model import LanguageModel
from pyllm2.observe.ensemble import is_int8
from pyllm2.observe.notebook import table
from pyllm2.observe.report import columns
from pyllm2.observe.runs import Prompt, on_engine
from pyllm2.observe.standard import Standard
from pyllm2.observe.trace import prompt_ids

Array = NDArray[Any]


class OpRow(NamedTuple):
    """An op, over all places where it is: the largest of each, in ulp."""

    op: str
    adds: float
    may_add: float
    carries: float
    may_carry: float


class Variant(NamedTuple):
    """Logits that were computed in another way, in ulp and as a share of the bound."""

    name: str
    error: float  # to the float64 shadow
    share: float
    apart: float  # from numpy's


@dataclass
class Budget:
    """`str(budget)` is the table."""

    title: str
    ops: list[OpRow] = field(default_factory=list)
    variants: list[Variant] = field(default_factory=list)
    ulp: float = 0.0  # of the largest logit
    bound: float = 0.0  # of a logit

    def tables(self) -> Iterator[tuple[str, list[str], list[list[str]]]]:
        heads = ["op", "adds", "may add", "carries", "may carry"]
        rows = [[r.op, *(f"{number:.3g}" for number in r[1:])] for r in self.ops]
        yield "largest error per op, in ulp of the array's largest number", heads, rows
        heads = ["logits", "error", "share of the bound", "from numpy's"]
        rows = [
            [v.name, f"{v.error:.3g}", f"{v.share:.4f}", f"{v.apart:.3g}"] for v in self.variants
        ]
        yield f"in ulp of the largest logit ({self.ulp:.3g})", heads, rows

    @property
    def allow(self) -> str:
        n = self.bound / self.ulp
        return (
            f"a test of the logits against float64 should allow {n:.3g} ulp of the largest one "
            f"(atol={self.bound:.2g}), a test of two float32 programs twice that"
        )

    def __str__(self) -> str:
        lines = [self.title]
        for caption, heads, rows in self.tables():
            lines += ["", caption, *columns(heads, rows)]
        return "\n".join([*lines, "", self.allow])

    def as_json(self) -> dict[str, Any]:
        ops, variants = ([r._asdict() for r in rows] for rows in (self.ops, self.variants))
        return {"ops": ops, "variants": variants, "ulp": self.ulp, "bound": self.bound}

    def _repr_html_(self) -> str:
        return "".join(f"<p>{c}</p>{table(heads, rows)}" for c, heads, rows in self.tables())


def explain(
    model: LanguageModel, prompt: str | bytes | Iterable[int], names: Iterable[str] = ()
) -> Budget:
    """names: of backends, besides NumPy

    Raises BackendError, ContextError, TokenizerError.
    """
    ids = prompt_ids(model, prompt)
    for name in names:
        backends.require(name)
    standard = Standard(model.model, Prompt(ids, singles=0))
    budget = Budget(f"error budget: {len(ids)} tokens, beside a float64 shadow")
    budget.ops = _ops(standard)
    value, error = standard.ensemble.named["logits"].bound(1)
    budget.ulp, budget.bound = _ulp(value), float(error.max())
    own = standard.run(on_engine(model.model, Engine(_plain("numpy", standard))))["logits"]
    for name, logits in [("numpy (BLAS)", own), *_variants(standard, names)]:
        off = np.abs(logits - value)
        share = float(np.max(off / error))
        apart = float(np.max(np.abs(logits.astype(np.float64) - own)))
        found = Variant(name, float(off.max()) / budget.ulp, share, apart / budget.ulp)
        budget.variants.append(found)
    return budget


def _plain(name: str, standard: Standard) -> Any:
    return backends.ops(name, package=standard.family)


def _ulp(value: Array) -> float:
    """The distance of float32 numbers at the largest of an array."""
    finite = np.abs(value[np.isfinite(value)])
    return float(np.spacing(np.float32(finite.max(initial=0.0))))


def _ops(standard: Standard) -> list[OpRow]:
    """The worst of every op, in the order of the run."""
    found: dict[str, OpRow] = {}
    for record in standard.reference:
        bounded = standard.bounded(record)
        if bounded is None:
            continue
        for (name, output), (value, allowed) in zip(record.outputs.items(), bounded, strict=True):
            exact, may_carry = standard.ensemble.bound(record.index, name)
            ulp = _ulp(value)
            errors = (output - value, allowed, output - exact, may_carry)
            with np.errstate(all="ignore"):
                sizes = [float(np.nanmax(np.abs(e), initial=0.0)) / ulp for e in errors]
            row = found.get(record.op, OpRow(record.op, 0, 0, 0, 0))
            worst = [max(a, b) for a, b in zip(row[1:], sizes, strict=True)]
            found[record.op] = OpRow(record.op, *worst)
    return list(found.values())


# ---- variants ----------------------------------------------------------------------------------


def _variants(standard: Standard, names: Iterable[str]) -> Iterator[tuple[str, Array]]:
    model, family = standard.model, standard.family

    def logits(engine: Engine) -> Array:
        with np.errstate(all="ignore"):
            return standard.run(on_engine(model, engine))["logits"]

    if not is_int8(model):
        plain = _plain("numpy", standard)
        for words, backwards, fused in (
            ("sums one after another", False, False),
            ("the same, backwards", True, False),
            ("the same, fused multiply-add", False, True),
        ):
            yield words, logits(Engine(_Ordered(plain, backwards, fused)))
    most = processors()
    for name in names:
        if name == "numpy":
            continue
        counts = [1, most] if most > 1 and not name.endswith("strict") else [1]
        for threads in counts:
            words = f"{name}, {threads} thread{'s' * (threads > 1)}"
            yield words, logits(backends.engine(name, threads, family))


class _Ordered:
    """The ops of the specification, with matrix products in one order of additions."""

    def __init__(self, ops: Any, backwards: bool, fused: bool) -> None:
        self._ops, self._how = ops, (backwards, fused)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def matmul(self, x: Array, w: Array, b: Array | None = None) -> Array:
        out = matmul_in_order(x, w, np.zeros(len(w), np.float32), *self._how)
        return out if b is None else out + b

    def matmul_forward(self, x: Array, w: Array, b: Array | None = None) -> Array:
        rows = x.reshape(-1, x.shape[-1])
        first = np.zeros(len(w), np.float32) if b is None else b
        out = matmul_in_order(rows, w, first, *self._how)
        return out.reshape(*x.shape[:-1], len(w))


def matmul_in_order(
    x: Array, w: Array, first: Array, backwards: bool = False, fused: bool = False
) -> Array:
    """first + x[t, 0] · w[i, 0] + x[t, 1] · w[i, 1] + ... in float32, in this order.

    backwards: from the last product on   fused: product and sum are rounded once
    x: (T, C)   w: (OC, C)   first: (OC,)   ->   (T, OC)
    """
    out = np.broadcast_to(first, (len(x), len(w))).astype(np.float32)
    wide: Callable[[Array], Array] = (lambda a: a.astype(np.float64)) if fused else (lambda a: a)
    order = range(x.shape[1])
    for c in reversed(order) if backwards else order:
        # In float64 the product of two float32 is exact.
        out = (wide(out) + wide(x[:, c, None]) * wide(w[None, :, c])).astype(np.float32)
    return out
