"""The record of one op, and a trace: the records of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Origin(NamedTuple):
    """What an input is: a result of an earlier record, a weight, or part of the cache."""

    name: str  # "wq", "keys", or the result's name
    record: int | None = None  # index of the record that made it
    layer: int | None = None  # of a weight or of the cache


@dataclass
class Record:
    """One op of a run."""

    index: int
    op: str
    layer: int | None  # None: before the first layer or after the last
    phase: str  # forward, backward, or update
    call: int  # number of the pass
    position: int  # of the first row, where a pass has a cache
    rows: int  # tokens of the pass
    weight: str = ""  # name of the weight among the inputs
    of: str = ""  # without one: the weight of the record that made the last input
    seconds: float = 0.0
    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Array] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    shapes: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)
    kept: bool = True  # whether inputs and outputs are there

    @property
    def place(self) -> str:
        """Example: "layer 2"; "ends" is before the first layer and after the last."""
        return "ends" if self.layer is None else f"layer {self.layer}"

    @property
    def name(self) -> str:
        """Example: "layer 2 wq matmul", "layer 2 residual of wo" """
        what = f"{self.weight} {self.op}" if self.weight else self.op
        what += f" of {self.of}" if self.of and not self.weight else ""
        return what if self.layer is None else f"{self.place} {what}"

    @property
    def words(self) -> frozenset[str]:
        """What it can be found by."""
        words = {self.op, self.place, self.phase, f"call {self.call}"}
        words |= {self.weight} - {""}
        words |= {f"of {self.of}"} if self.of else set()
        return frozenset(words)

    @property
    def output(self) -> Array:
        """The first result."""
        if not self.kept:
            raise KeyError(f"{self.name}: values were not kept")
        return next(iter(self.outputs.values()))

    @property
    def weights(self) -> Array:
        """Attention weights of an attention op: (heads, queries, keys), or (B, ...) in training."""
        from pyllm2.observe.attention import weights_of_record

        return weights_of_record(self)

    @property
    def nbytes(self) -> int:
        """Bytes of the results."""
        return sum(a.nbytes for a in self.outputs.values() if isinstance(a, np.ndarray))

    @property
    def described(self) -> str:
        """Example: "x (4, 64), weight (64,) -> out (4, 64)" """

        def words(names: list[str]) -> str:
            return ", ".join(
                f"{name.removeprefix('-> ')} {shape_words(*self.shapes[name])}" for name in names
            )

        results = [name for name in self.shapes if name.startswith("-> ")]
        return f"{words([n for n in self.shapes if n not in results])} -> {words(results)}"

    def __repr__(self) -> str:
        return f"<{self.index} {self.name}: {self.described}>"

    def _repr_html_(self) -> str:
        from pyllm2.observe.notebook import record_html

        return record_html(self)


def shape_words(shape: tuple[int, ...], dtype: str) -> str:
    """Example: (4, 64), "float32" -> "(4, 64)"; other dtypes are named."""
    words = "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
    return words if dtype == "float32" else f"{words} {dtype}"


class Trace(Sequence[Record]):
    """The records of a run in order."""

    def __init__(
        self,
        records: Sequence[Record],
        family: str = "",
        tokens: Sequence[int] = (),
        texts: Sequence[str] = (),
        backend: str = "",
    ) -> None:
        self.records, self.family, self.backend = list(records), family, backend
        self.tokens, self.texts = list(tokens), list(texts)

    @overload
    def __getitem__(self, key: int | str | tuple[str, ...]) -> Record: ...
    @overload
    def __getitem__(self, key: slice) -> Trace: ...
    def __getitem__(self, key: Any) -> Record | Trace:
        """A record by its number, or the one that has all the words: its place, op, weight.

        Raises KeyError, with the candidates, if the words fit no record or several.
        """
        if isinstance(key, int | np.integer):
            return self.records[int(key)]
        if isinstance(key, slice):
            return self._part(self.records[key])
        words = (key,) if isinstance(key, str) else tuple(key)
        found = [r for r in self.records if r.words.issuperset(words)]
        if len(found) > 1:  # "wo" is the product with wo, not the residual that adds it
            found = [r for r in found if r.op in words or r.weight in words] or found
        if len(found) == 1:
            return found[0]
        if not found:
            known = sorted({w for r in self.records for w in r.words})
            raise KeyError(f"no record has all of {', '.join(words)}; there are {', '.join(known)}")
        several = "; ".join(f"{r.index} {r.name}" for r in found[:8])
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        raise KeyError(f"{len(found)} records have {', '.join(words)}: {several}{more}")

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def where(self, *words: str, **fields: Any) -> Trace:
        """The records that have all the words, and these fields: `where(layer=2, op="rope")`."""
        return self._part(
            [
                r
                for r in self.records
                if r.words.issuperset(words) and all(getattr(r, f) == v for f, v in fields.items())
            ]
        )

    def _part(self, records: Sequence[Record]) -> Trace:
        return Trace(records, self.family, self.tokens, self.texts, self.backend)

    @property
    def nbytes(self) -> int:
        """Bytes of all results that are kept."""
        return sum(r.nbytes for r in self.records)

    def __str__(self) -> str:
        lines = [f"{'':>5} {'op':<34} {'ms':>8}  shapes"]
        for r in self.records:
            lines.append(f"{r.index:>5} {r.name:<34} {1e3 * r.seconds:>8.3f}  {r.described}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Trace of {len(self)} ops, {self.nbytes} bytes, backend {self.backend!r}>"

    def _repr_html_(self) -> str:
        from pyllm2.observe.notebook import trace_html

        return trace_html(self)
