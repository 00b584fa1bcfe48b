"""Training checkpoint: one safetensors file with everything that the next step depends on.

One file, because two files cannot be renamed atomically. It holds no time stamps and no timings:
the same steps give the same bytes, whether or not the run was interrupted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import FileError, FormatError, shown
from pyllm2.formats.safetensors_file import SafetensorsFile, write_safetensors
from pyllm2.training.outlier import OutlierDetector

ARRAYS = "params m v loss_outliers norm_outliers".split()
VERSION = 1
KEY = "pyllm2.training"  # the only metadata entry; its value is JSON
LOADER = "data."  # prefix of the names of the data loader's arrays


@dataclass(frozen=True)
class Checkpoint:
    """State of a run before update `step`.

    identity: JSON that must match when the run is resumed: model, recipe, data, engine
    loader: state of the data loader, numbers and arrays
    """

    step: int
    identity: dict[str, Any]
    params: Any  # (n,), like m and v: an array, of a file read a `StoredVector`,
    m: Any  # and of a run with shards `Blocks`
    v: Any
    loss_outliers: NDArray[np.float64]
    norm_outliers: NDArray[np.float64]
    loader: Mapping[str, Any]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file atomically. Raises FileError."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in ARRAYS}
        numbers = {}
        for name, value in self.loader.items():
            if isinstance(value, np.ndarray):
                arrays[LOADER + name] = value
            else:
                numbers[name] = value
        text = {"version": VERSION, "step": self.step, "identity": self.identity, "data": numbers}
        write_safetensors(path, arrays, {KEY: json.dumps(text, sort_keys=True)})


class CheckpointFile:
    """An open checkpoint: its metadata first, its arrays once the run has been recognised.

    Raises FormatError for a file that is not a training checkpoint.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._file = SafetensorsFile(path)
        if KEY not in self._file.metadata:
            raise FormatError(self.path, "a safetensors file, but not a training checkpoint")
        found = _json(self.path, self._file.metadata[KEY])
        if found.get("version") != VERSION:
            raise FormatError(self.path, f"version = {found.get('version')!r}: expected {VERSION}")
        self.step = self._field(found, "step", int)
        self.identity = self._field(found, "identity", dict)
        self._numbers = self._field(found, "data", dict)
        if self.step < 0:
            raise FormatError(self.path, f"step = {self.step}: expected a number ≥ 0")

    def _field(self, found: Mapping[str, Any], name: str, kind: type) -> Any:
        value = found.get(name)
        if type(value) is not kind or (isinstance(value, int) and value >= 2**63):
            raise FormatError(self.path, f"metadata: {name} = {shown(value)}: damaged")
        return value

    def require_same_run(
        self, identity: Mapping[str, Any], other_engine: bool = False, longer: bool = False
    ) -> None:
        """Refuse to resume with another model, recipe or data.

        other_engine: accept one   longer: accept another number of steps

        Another number of processes is accepted: the sum over them is taken in another order, so
        another number of threads, which follows from it, does not matter either.

        Raises FileError listing the differences.
        """
        all_differences = differences(self.identity, identity)
        if processes_of(self.identity) != processes_of(identity):
            free = ("engine.processes ", "engine.threads ")
            all_differences = [line for line in all_differences if not line.startswith(free)]
        if longer:
            all_differences = [x for x in all_differences if not x.startswith("recipe.steps ")]
        others = [line for line in all_differences if not line.startswith("engine.")]
        if others or (all_differences and not other_engine):
            hint = "" if others else "; --other-engine resumes, but the last bits may differ"
            raise FileError(self.path, f"of another run: {', '.join(all_differences)}{hint}")

    def params(self, n: int) -> Any:
        """The n parameters, left in the file. Raises FormatError for another number."""
        return self._file.read_vector("params", n)

    def read(self, n: int) -> Checkpoint:
        """Read the small arrays and check all. n: number of parameters of the model"""
        file, window = self._file, OutlierDetector().state.shape
        loader: dict[str, Any] = {
            name: self._field(self._numbers, name, int) for name in self._numbers
        }
        for name in sorted(file.names):
            if name.startswith(LOADER):
                loader[name.removeprefix(LOADER)] = file.read_any(name)
        outliers = {
            name: file.read(name, np.float64, window) for name in ("loss_outliers", "norm_outliers")
        }
        for name, state in outliers.items():
            if not (0 <= state[0] < 2**53 and float(state[0]).is_integer()):
                raise FormatError(self.path, f"tensor {name!r}: {state[0]:g} values: damaged")
        return Checkpoint(
            step=self.step,
            identity=self.identity,
            params=self.params(n),
            m=file.read_vector("m", n),
            v=file.read_vector("v", n),
            loader=loader,
            **outliers,
        )


def processes_of(identity: Mapping[str, Any]) -> int:
    """The number of processes of the run that an identity belongs to."""
    engine = identity.get("engine")
    found = engine.get("processes", 1) if isinstance(engine, Mapping) else 1
    return found if type(found) is int else 1


def differences(saved: Any, wanted: Any, name: str = "", where: str = "saved") -> list[str]:
    """One entry per field that differs: `recipe.batch = 8 (saved: 4)`.

    where: the word for `saved` in the entries
    """
    if isinstance(saved, Mapping) and isinstance(wanted, Mapping):
        return [
            line
            for key in sorted({*saved, *wanted})
            for line in differences(
                saved.get(key), wanted.get(key), f"{name}.{key}".lstrip("."), where
            )
        ]
    if isinstance(saved, list) and isinstance(wanted, list) and len(saved) == len(wanted):
        return [
            line
            for i, pair in enumerate(zip(saved, wanted, strict=True))
            for line in differences(*pair, f"{name}[{i}]", where)
        ]
    return [] if saved == wanted else [f"{name} = {_short(wanted)} ({where}: {_short(saved)})"]


def _short(value: Any) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        return "…"
    return text if len(text) <= 40 else text[:37] + "…"


def _json(path: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise FormatError(path, "metadata: not JSON") from None
    if not isinstance(found, dict):
        raise FormatError(path, "metadata: not a JSON object")
    return found
