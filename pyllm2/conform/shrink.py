"""The smallest case that fails in the same way: fewer steps, layers, heads, ids, sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from pyllm2.conform.case import SPACE_ID, Case, Text
from pyllm2.errors import PyLLM2Error

SEEDS = 4  # of weights, tried for every smaller case
Fails = Callable[[Case], bool]

PLAIN = (Text(SPACE_ID, b" "),)


def shrink(case: Case, fails: Fails, seconds: float, most_runs: int) -> Case:
    """Replace the case by a smaller one that still fails, as long as there is one.

    fails: runs a case and says whether it fails in the same way
    """
    end = time.monotonic() + seconds
    runs = 0
    again = True
    while again:
        again = False
        for changes in smaller(case):
            for seed in range(SEEDS if _redraws(changes) else 1):
                if time.monotonic() > end or runs >= most_runs:
                    return case
                candidate = _valid(case, {**changes, "weights": case.weights + seed})
                if candidate is None:
                    break
                runs += 1
                if fails(candidate):
                    case, again = candidate, True
                    break
            if again:
                break
    return case


def _redraws(changes: dict[str, Any]) -> bool:
    """Whether the weights are others after these changes."""
    return bool(changes.keys() - {"steps", "seq_len", "prompt"})


def _valid(case: Case, changes: dict[str, Any]) -> Case | None:
    candidate = case.but(**changes)
    try:
        _ = candidate.config
    except PyLLM2Error:
        return None
    highest = max([t.id for t in candidate.texts] + [i for i, _ in candidate.boost] + [8])
    return candidate if candidate.vocab_size > highest else None


def smaller(case: Case) -> Iterator[dict[str, Any]]:
    """Changes to a case, the most radical first."""
    for steps in _towards(case.steps, 1):
        if case.steps <= case.seq_len:
            yield {"steps": steps}
    for layers in _towards(case.n_layers, 1):
        yield {"n_layers": layers}
    if case.style == "stories":
        return
    if case.prompt:
        for i in range(len(case.prompt)):
            yield {"prompt": case.prompt[:i] + case.prompt[i + 1 :]}
    for n, line in enumerate(case.lines[:2]):
        for i in range(len(line)):
            yield {"lines": (*case.lines[:n], line[:i] + line[i + 1 :], *case.lines[n + 1 :])}
    yield from _fewer_heads(case)
    hs = case.dim // case.n_heads
    for smaller_hs in _towards(hs // 2, 1):
        yield {"dim": 2 * smaller_hs * case.n_heads}
    for hidden in _towards(case.hidden_dim, 1):
        yield {"hidden_dim": hidden}
    for V in _towards(case.vocab_size, 16):
        yield {"vocab_size": V}
    if case.steps > case.seq_len:
        for S in _towards(case.seq_len, 1):
            yield {"seq_len": S, "steps": S + 1}
        yield {"steps": case.seq_len + 1}
    if case.steps > 0:
        for S in _towards(case.seq_len, case.steps):
            yield {"seq_len": S}
    if not case.shared and case.style != "ties":
        yield {"shared": True}
    if (
        case.prompt is None
        and case.texts not in ((), PLAIN)
        and case.judge == "ids"
        and not case.lines
    ):
        yield {"texts": PLAIN}
    if case.blocks == "all":
        for blocks in ("none", "values", "feed-forward", "attention"):
            yield {"blocks": blocks}


def _fewer_heads(case: Case) -> Iterator[dict[str, Any]]:
    hs = case.dim // case.n_heads
    for NH in range(1, case.n_heads):
        for NKV in range(1, min(NH, case.n_kv_heads) + 1):
            if NH % NKV == 0:
                yield {"n_heads": NH, "n_kv_heads": NKV, "dim": NH * hs}
    for NKV in range(1, case.n_kv_heads):
        if case.n_heads % NKV == 0:
            yield {"n_kv_heads": NKV}


def _towards(n: int, least: int) -> list[int]:
    """Smaller numbers: the least, then halves of the way, then one less."""
    found = []
    gap = n - least
    while gap > 0:
        found.append(n - gap)
        gap //= 2
    return found
