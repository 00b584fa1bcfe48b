"""A run on the disk: one file that holds everything the next step depends on.

One, because two files cannot be renamed together. Nothing in it tells when or how fast it was
made: the same steps give the same bytes, whether or not the run was stopped in between.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import FileError, FormatError
from pyllm2.formats.safetensors_file import SafetensorsFile, write_safetensors
from pyllm2.training.outlier import OutlierDetector

VERSION = 1
KEY = "pyllm2.training"  # the one entry of the metadata; its value is JSON
LOADER = "data."  # what the names of the loader's arrays begin with

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run before the update `step`.

    identity: JSON that must be the same when the run goes on: model, recipe, data, engine
    loader: numbers and arrays that only the loader understands
    """

    step: int
    identity: dict[str, Any]
    params: Array  # (n,)
    m: Array  # (n,)
    v: Array  # (n,)
    loss_outliers: NDArray[np.float64]
    norm_outliers: NDArray[np.float64]
    loader: Mapping[str, Any]

    def write(self, path: str | os.PathLike[str]) -> None:
        """The old file or the whole new one is there afterwards. Raises FileError."""
        arrays: dict[str, NDArray[Any]] = {
            "params": self.params, "m": self.m, "v": self.v,
            "loss_outliers": self.loss_outliers, "norm_outliers": self.norm_outliers,
        }  # fmt: skip
        numbers = {}
        for name, value in self.loader.items():
            if isinstance(value, np.ndarray):
                arrays[LOADER + name] = value
            else:
                numbers[name] = value
        text = {
            "version": VERSION, "step": self.step, "identity": self.identity, "data": numbers,
        }  # fmt: skip
        write_safetensors(path, arrays, {KEY: json.dumps(text, sort_keys=True)})


class CheckpointFile:
    """A checkpoint that is open: what run it is of first, its arrays once that is approved.

    Raises FormatError for whatever is not a checkpoint of ours.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._file = SafetensorsFile(path)
        if KEY not in self._file.metadata:
            raise FormatError(self.path, "a safetensors file, but no training checkpoint")
        found = _json(self.path, self._file.metadata[KEY])
        if found.get("version") != VERSION:
            raise FormatError(self.path, f"version = {found.get('version')!r}: expected {VERSION}")
        self.step = self._field(found, "step", int)
        self.identity = self._field(found, "identity", dict)
        self._numbers = self._field(found, "data", dict)
        if self.step < 0:
            raise FormatError(self.path, f"step = {self.step}: expected a number ≥ 0")

    def _field(self, found: Mapping[str, Any], name: str, kind: type) -> Any:
        if type(found.get(name)) is not kind:
            raise FormatError(self.path, f"metadata: {name} = {found.get(name)!r}: damaged")
        return found[name]

    def require_same_run(self, identity: Mapping[str, Any], force: bool) -> None:
        """Refuse to go on with another model, recipe or data; `force` lets another engine pass.

        Raises FileError, which lists what differs.
        """
        all_differences = differences(self.identity, identity)
        others = [line for line in all_differences if not line.startswith("engine.")]
        if others or (all_differences and not force):
            hint = "" if others else "; with --force it goes on, and its last bits may differ"
            raise FileError(self.path, f"of another run: {', '.join(all_differences)}{hint}")

    def read(self, n: int) -> Checkpoint:
        """All of it. n: how many parameters the model has"""
        file, window = self._file, OutlierDetector().state.shape
        loader: dict[str, Any] = dict(self._numbers)
        for name in sorted(file.names):
            if name.startswith(LOADER):
                loader[name.removeprefix(LOADER)] = file.read_any(name)
        return Checkpoint(
            step=self.step,
            identity=self.identity,
            params=file.read("params", np.float32, (n,)),
            m=file.read("m", np.float32, (n,)),
            v=file.read("v", np.float32, (n,)),
            loss_outliers=file.read("loss_outliers", np.float64, window),
            norm_outliers=file.read("norm_outliers", np.float64, window),
            loader=loader,
        )


def differences(saved: Any, wanted: Any, name: str = "") -> list[str]:
    """One entry a field that is not the same, in words: `recipe.batch = 8 (saved: 4)`."""
    if isinstance(saved, Mapping) and isinstance(wanted, Mapping):
        return [
            line
            for key in sorted({*saved, *wanted})
            for line in differences(saved.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))
        ]
    if isinstance(saved, list) and isinstance(wanted, list) and len(saved) == len(wanted):
        return [
            line
            for i, pair in enumerate(zip(saved, wanted, strict=True))
            for line in differences(*pair, f"{name}[{i}]")
        ]
    return [] if saved == wanted else [f"{name} = {_short(wanted)} (saved: {_short(saved)})"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "…"


def _json(path: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise FormatError(path, "metadata: not JSON") from None
    if not isinstance(found, dict):
        raise FormatError(path, "metadata: not a JSON object")
    return found
