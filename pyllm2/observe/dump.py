"""A dump of hidden states by any program: which arrays a file has, by their names and shapes.

    out = model(ids, output_hidden_states=True)                                  # transformers
    hidden = {f"hidden_{n}": h.numpy() for n, h in enumerate(out.hidden_states)}
    np.savez("dump.npz", input_ids=ids.numpy(), logits=out.logits.numpy(), **hidden)

A batch of one sequence may stand in front of every shape. Names that end in a number make a list;
an array with an axis more is a list too. Names with a layer and a part, as hooks give them
(`model.layers.3.self_attn.q_proj`), are results inside of a layer.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import FormatError, shown
from pyllm2.observe.arrays import read_arrays

Array = NDArray[Any]
# The part of a layer that an array is, by a piece of its name; ours is the name of a weight, or of
# what has none. The first that fits counts.
PARTS = {
    "llama2": {
        "q_proj wq attn_q": "wq",
        "k_proj wk attn_k": "wk",
        "v_proj wv attn_v": "wv",
        "o_proj wo attn_output": "wo",
        "gate_proj w1 ffn_gate": "w1",
        "down_proj w2 ffn_down": "w2",
        "up_proj w3 ffn_up": "w3",
        "post_attention_layernorm ffn_norm": "ffn_norm",
        "input_layernorm attention_norm attn_norm": "attention_norm",
        "query q_rot rotated_q": "query",
        "key keys k_rot rotated_k": "key",
        "value values": "wv",
        "self_attn": "wo",
        "mlp": "w2",
    },
    "gpt2": {
        "attn.c_attn qkv": "qkvw",
        "attn.c_proj attproj": "attprojw",
        "mlp.c_fc fch": "fcw",
        "mlp.c_proj fcproj": "fcprojw",
        "ln_1 ln1": "ln1w",
        "ln_2 ln2": "ln2w",
        "attn": "attprojw",
        "mlp": "fcprojw",
    },
}
_LAYER = re.compile(r"(?:^|[^a-z])(?:layers?|h|blk|blocks?)[._ ]?(\d+)[._ /]+(\S.*)$")
_NUMBER = re.compile(r"^(.*?)[._\[ ]*(\d+)\]?$")
UNITS = {"float64": 2.0**-24, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


@dataclass
class Dump:
    """What a file says about one sequence of T tokens.

    hidden: stream after each layer, or what the program calls so   logits: by their names
    parts: (layer, part of `PARTS`) -> name of the array and array
    """

    path: str
    ids: list[int] = field(default_factory=list)  # empty: not in the file
    hidden: list[Array] = field(default_factory=list)  # (T, C) each
    hidden_name: str = ""
    logits: dict[str, Array] = field(default_factory=dict)  # (T, V) each
    parts: dict[tuple[int, str], tuple[str, Array]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    @property
    def precision(self) -> str:
        """The least exact type that all its numbers fit in."""
        arrays = [*self.hidden, *self.logits.values(), *(a for _, a in self.parts.values())]
        if all(_bfloat16(a) for a in arrays):
            return "bfloat16"
        return "float16" if all(_float16(a) for a in arrays) else "float32"


def _bfloat16(array: Array) -> bool:
    with np.errstate(all="ignore"):
        narrow = np.ascontiguousarray(array, np.float32)
    exact = narrow.dtype == array.dtype or bool(np.all((narrow == array) | np.isnan(array)))
    return exact and not np.any(narrow.view(np.uint32) & 0xFFFF)


def _float16(array: Array) -> bool:
    with np.errstate(all="ignore"):
        return bool(np.all((array.astype(np.float16) == array) | np.isnan(array)))


def read_dump(path: str | os.PathLike[str], family: str) -> Dump:
    """Raises FileError, FormatError: no array is hidden states or logits of one sequence."""
    name = os.fspath(path)
    arrays, text = read_arrays(name)
    if text:
        raise FormatError(name, "a trace of pyllm2: expected arrays of another program")
    dump = Dump(name)
    lists: dict[str, dict[int, Array]] = {}
    for key, array in arrays.items():
        _put(dump, family, key, array, lists)
    for key, numbered in sorted(lists.items(), key=lambda item: -len(item[1])):
        _put_list(dump, key, [numbered[n] for n in sorted(numbered)])
    if not (dump.hidden or dump.logits or dump.parts):
        names = ", ".join(f"{shown(n)} {a.shape}" for n, a in list(arrays.items())[:5])
        raise FormatError(
            name, f"arrays {names or '(none)'}: expected hidden states (L + 1, T, C) or logits"
        )
    return dump


def _put(
    dump: Dump, family: str, key: str, array: Array, lists: dict[str, dict[int, Array]]
) -> None:
    """One array of the file to where it belongs."""
    if array.dtype.kind in "iu":
        if dump.ids and re.search(r"id|token", key) is None:
            dump.unused.append(key)
        else:
            dump.ids = _one_sequence(dump.path, key, array, 1).tolist()
        return
    if array.dtype.kind != "f":
        dump.unused.append(key)
        return
    if "logits" in key:
        dump.logits[key] = _one_sequence(dump.path, key, array, 2)
        return
    inside = _LAYER.search(key)
    part = _part(family, inside[2]) if inside else None
    if inside and part:
        dump.parts[int(inside[1]), part] = key, array
        return
    numbered = _NUMBER.match(key)
    if numbered and (array.ndim == 2 or (array.ndim == 3 and len(array) == 1)):
        one = _one_sequence(dump.path, key, array, 2)
        lists.setdefault(numbered[1], {})[int(numbered[2])] = one
    elif array.ndim in (3, 4):
        if array.ndim == 4:  # (L + 1, 1, T, C)
            array = np.stack([_one_sequence(dump.path, key, a, 2) for a in array])
        _put_list(dump, key, list(array))
    else:
        dump.unused.append(key)


def _put_list(dump: Dump, key: str, arrays: list[Array]) -> None:
    if dump.hidden:
        dump.unused.append(key)
    else:
        dump.hidden, dump.hidden_name = arrays, key


def _part(family: str, name: str) -> str | None:
    for pieces, part in PARTS[family].items():
        for piece in pieces.split():
            if re.search(rf"(?<![a-z]){re.escape(piece)}(?![a-z\d])", name):
                return part
    return None


def _one_sequence(path: str, key: str, array: Array, axes: int) -> Array:
    """Without the batch axis. Raises FormatError if there are several sequences."""
    if array.ndim == axes + 1 and len(array) == 1:
        return array[0]
    if array.ndim != axes:
        expected = {1: "(T)", 2: "(T, channels)"}[axes]
        raise FormatError(
            path, f"{shown(key)}: shape {array.shape}, expected {expected} of one sequence"
        )
    return array
