"""Named arrays in one flat buffer: what is learned, its gradient, its moments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


class Parameters(Mapping[str, Array]):
    """Arrays that are views into `flat`, in the order given: an optimizer sees one long vector.

        p = Parameters({"w": (2, 3), "b": (2,)})
        p["w"] or p.w     (2, 3), a view: writing into it writes into p.flat
        p.flat            (8,)

    Gradients are another Parameters of the same shapes, and so are the moments of AdamW.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], flat: Array | None = None) -> None:
        sizes = {name: int(np.prod(shape, dtype=np.int64)) for name, shape in shapes.items()}
        self.flat = np.zeros(sum(sizes.values()), np.float32) if flat is None else flat
        self._views: dict[str, Array] = {}
        start = 0
        for name, shape in shapes.items():
            self._views[name] = self.flat[start : start + sizes[name]].reshape(shape)
            start += sizes[name]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: view.shape for name, view in self._views.items()}

    def zeros_like(self) -> Parameters:
        """The same names and shapes, all zero."""
        return Parameters(self.shapes, np.zeros_like(self.flat))

    def __getattr__(self, name: str) -> Array:
        try:
            return self.__dict__["_views"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, name: str) -> Array:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)
