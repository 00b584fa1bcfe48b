"""Examine a file: what it is, whether it is whole, and whether its numbers look like a model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyllm2.errors import FileError, PyLLM2Error, PyLLM2Warning
from pyllm2.formats.kinds import kind_of
from pyllm2.formats.reader import open_source
from pyllm2.inference.load import load
from pyllm2.parameters import Quantized
from pyllm2.tokenizers import load_tokenizer

FINE, BROKEN, NOT_SUPPORTED = 0, 1, 3
FAR_OUT = 1e4  # no weight of a usable model is that large


@dataclass
class Finding:
    """What is known of one path. code: FINE, BROKEN or NOT_SUPPORTED."""

    path: str
    kind: str
    code: int = FINE
    lines: list[str] = field(default_factory=list)
    command: str = ""


def examine(path: str) -> Finding:
    """Look at one path. Faults become lines of the finding; nothing is raised for them."""
    try:
        if os.path.isdir(path):
            kind = "a folder"
        else:
            with open_source(path) as source:
                kind = kind_of(source.head) or "a checkpoint of llama2.c, by exclusion"
    except FileError as error:
        return Finding(path, "nothing that can be read", BROKEN, [error.reason])
    finding = Finding(path, kind)
    try:
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always", PyLLM2Warning)
            model = load(path, backend="numpy")
    except PyLLM2Error as error:
        return _no_model(finding, error)
    finding.lines += [str(note.message) for note in notes]
    finding.lines.append(str(model.config))
    if not os.path.isdir(path):
        finding.lines.append(f"{os.path.getsize(path)} bytes, as many as its header asks for")
    weights = getattr(model.model, "weights", None) or getattr(model.model, "params", None)
    faults = list(_faults(weights))
    finding.lines += faults
    finding.code = BROKEN if faults else FINE
    finding.command = f"pyllm2 generate {path}"
    return finding


def _no_model(finding: Finding, error: PyLLM2Error) -> Finding:
    """A tokenizer is fine; what is refused by its kind is not supported, the rest is broken."""
    try:
        tokenizer = load_tokenizer(finding.path)
    except PyLLM2Error:
        text = str(error)
        unsupported = any(words in text for words in ("not supported", "looks like", "unsupported"))
        fetch = any(words in text for words in ("LFS", "web page"))
        finding.code = NOT_SUPPORTED if unsupported and not fetch else BROKEN
        finding.lines.append(text)
    else:
        finding.kind = "a tokenizer"
        finding.lines.append(f"{tokenizer.vocab_size} tokens")
        finding.command = f"pyllm2 tokenize --tokenizer {finding.path} TEXT"
    return finding


def _faults(weights: Any) -> Iterator[str]:
    """NaN, infinities, constant tensors and numbers far out, by the name of the tensor."""
    for name, tensor in _tensors(weights):
        if not np.isfinite(tensor).all():
            yield f"{name}: {np.count_nonzero(~np.isfinite(tensor))} numbers are not finite"
        elif tensor.size > 1 and (tensor == 0).all():
            yield f"{name}: all zero"
        elif tensor.ndim > 2 and (tensor == tensor.flat[0]).all():
            yield f"{name}: all numbers are {tensor.flat[0]:g}"
        elif np.abs(tensor).max() > FAR_OUT:
            yield f"{name}: its largest number is {np.abs(tensor).max():g}"


def _tensors(weights: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(weights, "keys"):
        pairs = [(name, weights[name]) for name in weights]
    else:
        pairs = list(vars(weights).items()) if weights is not None else []
    for name, tensor in pairs:
        if isinstance(tensor, Quantized):
            yield f"scales of {name}", tensor.scales
        elif isinstance(tensor, np.ndarray):
            yield name, tensor
