"""Programs with the conventions of llm.c's CPU trainer, on drawn tiny checkpoints and shards.

    files    gpt2_124M.bin, gpt2_tokenizer.bin, and in dev/data/tinyshakespeare
             tiny_shakespeare_train.bin, tiny_shakespeare_val.bin
    run      no arguments, 41 updates of 4 x 64 tokens, AdamW at 1e-4 without decay
    stdout   `val loss X` before every tenth update, `step N: train loss X`

The losses are compared with those of the same training here. How far honest arithmetic may be off
is measured: trainings whose weights are moved by a few units of rounding before every step spread,
and SPREADS times that is allowed, besides the rounding of a mean of B·T losses. A debug state that
the program writes names the first tensor.
"""

from __future__ import annotations

import functools
import re
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2 import backends
from pyllm2.conform import child
from pyllm2.errors import FileError, PyLLM2Error, os_errors
from pyllm2.formats.llmc import DEBUG_MAGIC, read_debug_state
from pyllm2.formats.llmc_tokens import write_shard
from pyllm2.formats.llmc_vocabulary import write_vocabulary
from pyllm2.gpt2.checkpoint import save_parameters
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.training import TrainableGPT2
from pyllm2.parameters import Parameters
from pyllm2.testing.bounds import CONFIDENCE, random_walk
from pyllm2.training.loader import DataLoader

Array = NDArray[Any]
B, T, STEPS = 4, 64, 41
VALIDATE_EVERY, VALIDATION_BATCHES = 10, 5
HYPER = (1e-4, 0.9, 0.999, 1e-8, 0.0)
MODEL, TOKENIZER = "gpt2_124M.bin", "gpt2_tokenizer.bin"
DATA = "dev/data/tinyshakespeare/tiny_shakespeare_"
PRINTED = 1e-6  # a loss is printed with six decimals
ROUNDED_MEAN = CONFIDENCE * random_walk(B * T)
TRIALS, SPREADS, MOVED = 3, 8.0, 2.0**-22
_LOSS = re.compile(rb"^(?:val loss|step (\d+): train loss) +(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class TrainerCase:
    """A checkpoint and its data. batches: in an epoch of the training shard"""

    name: str
    config: GPT2Config
    batches: int = 60
    validation: int = 9
    scale: float = 0.1  # of the weights
    cause: str = ""  # what usually breaks it


def _config(L: int, NH: int, C: int, V: int = 61, Vp: int = 64, S: int = T) -> GPT2Config:
    return GPT2Config(S, V, L, NH, C, Vp)


CASES = (
    TrainerCase("smoke", _config(1, 1, 8, 64), cause="the conventions of files, sizes, stdout"),
    TrainerCase("heads", _config(1, 3, 12, 64), cause="heads of q, k and v, scores by √head size"),
    TrainerCase("layers", _config(3, 2, 8, 64), cause="strides from layer to layer"),
    TrainerCase("padding", _config(1, 2, 8, 50, 128), cause="the vocabulary's padding in softmax"),
    TrainerCase("context", _config(1, 2, 8, 64, 64, 80), cause="rows of wpe beyond the batch"),
    TrainerCase("vector-tails", _config(1, 1, 10, 37, 37), cause="sizes that are no multiple of 8"),
    TrainerCase("epochs", _config(1, 1, 8, 64), 6, 2, cause="the end of an epoch, shuffled anew"),
    TrainerCase("large-weights", _config(1, 2, 16, 64), scale=0.6, cause="the largest of softmax"),
)


@dataclass
class Events:
    """Losses in the order in which they are printed. what: "val loss before step 10", ..."""

    what: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    allowed: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class TrainerResult:
    """Of one case. status: passes, differs, crashes, refuses"""

    name: str
    status: str
    says: str = ""
    cause: str = ""
    folder: str = ""


# ---- a case ------------------------------------------------------------------------------------


def parameters(case: TrainerCase) -> Parameters:
    """Random weights; rows of the padding too, which must not matter."""
    random = np.random.default_rng(5)
    params = Parameters(case.config.shapes())
    for name, array in params.items():
        array[...] = case.scale * random.normal(size=array.shape)
        if name in ("ln1w", "ln2w", "lnfw"):
            array += 1
    return params


def lay_out(case: TrainerCase, folder: Path) -> None:
    """Write the four files."""
    random, V = np.random.default_rng(6), case.config.vocab_size
    save_parameters(folder / MODEL, case.config, parameters(case))
    write_vocabulary(folder / TOKENIZER, [b"[%d]" % i for i in range(V)], 0)
    (folder / DATA).parent.mkdir(parents=True, exist_ok=True)
    for name, batches in (("train", case.batches), ("val", case.validation)):
        ids = random.integers(0, V, batches * B * T + 1 + random.integers(0, B * T))
        ids = np.where(random.random(ids.size) < 0.5, ids, ids // 4)  # some are more frequent
        write_shard(folder / f"{DATA}{name}.bin", ids)


@functools.cache
def expected(case: TrainerCase) -> Events:
    """The losses of the same training here, and how far others may be off."""
    events = Events()
    with tempfile.TemporaryDirectory(prefix="conform-") as name:
        lay_out(case, Path(name))
        seeds = [None, *range(TRIALS)]
        runs = [list(_train(case, Path(name), seed)) for seed in seeds]
    widest = 0.0
    for i, (what, loss) in enumerate(runs[0]):
        widest = max(widest, *(abs(run[i][1] - loss) for run in runs[1:]))
        events.what.append(what)
        events.losses.append(loss)
        events.allowed.append(PRINTED + SPREADS * widest + ROUNDED_MEAN * abs(loss))
    return events


def _train(case: TrainerCase, folder: Path, seed: int | None) -> Iterator[tuple[str, float]]:
    """What is printed, and the losses. seed: of the moves of the weights, or None"""
    names = [name for name in ("c-strict", "numpy") if backends.why_not(name) is None]
    params = parameters(case)
    model = TrainableGPT2(case.config, params, backends.engine(names[0], family="gpt2"))
    adamw = backends.ops(names[0], package="training").adamw_update
    train = DataLoader(str(folder / f"{DATA}train.bin"), B, T, shuffle=True)
    validation = DataLoader(str(folder / f"{DATA}val.bin"), B, T)
    m, v = np.zeros_like(params.flat), np.zeros_like(params.flat)
    grads, random = params.zeros_like(), np.random.default_rng(seed)
    for step in range(STEPS):
        if seed is not None:
            moves = random.uniform(-MOVED, MOVED, params.flat.size)
            params.flat[...] = params.flat * (1 + moves)
        if step % VALIDATE_EVERY == 0:
            validation.reset()
            batches = [validation.next_batch() for _ in range(VALIDATION_BATCHES)]
            losses = [float(np.mean(model.losses(x, y), dtype=np.float64)) for x, y in batches]
            yield f"val loss before step {step}", float(np.mean(losses))
        x, y = train.next_batch()
        found = model.add_gradient(x, y, 1 / x.size, grads, fresh=True)
        yield f"train loss of step {step}", float(np.mean(found, dtype=np.float64))
        adamw(params.flat, grads.flat, m, v, step + 1, *HYPER)


# ---- judging -----------------------------------------------------------------------------------


def read_losses(out: bytes) -> list[tuple[bool, float]]:
    """Whether it is one of validation, and the loss, of every line that has one."""
    found = []
    for match in _LOSS.finditer(out):
        try:
            found.append((match[1] is None, float(match[2])))
        except ValueError:
            found.append((match[1] is None, float("nan")))
    return found


def first_difference(case: TrainerCase, wanted: Events, out: bytes) -> str:
    """The first loss that differs, with a hint; "" if none does."""
    found = read_losses(out)
    for i, (what, loss) in enumerate(zip(wanted.what, wanted.losses, strict=True)):
        if i == len(found):
            return f"no {what}: stdout has {len(found)} losses of {len(wanted.what)}"
        validation, printed = found[i]
        if validation != what.startswith("val"):
            kind = "val loss" if validation else "train loss"
            return f"a {kind} in place of the {what}"
        if not abs(printed - loss) <= wanted.allowed[i]:
            text = f"{what}: {printed:.6f} in place of {loss:.6f}, {wanted.allowed[i]:.1g} allowed"
            return f"{text}; {_hint(case, what)}"
    return f"{len(found)} losses in place of {len(wanted.what)}" * (len(found) > len(wanted.what))


def _hint(case: TrainerCase, what: str) -> str:
    """Where to look, by the first place that differs: everything before it is right."""
    step = int(what.rpartition(" ")[2])
    if what.startswith("val"):
        if step == 0:
            return "look at the forward pass, and at the order of validation batches"
        return "the loader of validation may not begin anew, or not take 5 batches"
    if step == 0:
        return "the forward pass is right: look at the order of training batches (shuffled)"
    if step == 1:
        return "the loss before the first update is right: look at gradients and AdamW"
    if step >= case.batches and step % case.batches == 0:
        return "an epoch ends here: shards and samples are shuffled anew"
    return "look at what grows with the step: AdamW's moments and corrections, sums not set to 0"


def first_tensor(case: TrainerCase, folder: Path) -> str:
    """The first tensor outside its bound in a debug state that the program wrote; "" if none."""
    from pyllm2.testing import training_bound

    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        with open(path, "rb") as file:
            if file.read(4) != struct.pack("<i", DEBUG_MAGIC):
                continue
        params = parameters(case)
        try:
            state = read_debug_state(path, case.config.vocab_size, params.shapes)
        except PyLLM2Error as error:
            return str(error).replace(f"{folder}/", "")
        model = TrainableGPT2(case.config, params, backends.engine("numpy", family="gpt2"))
        bound = training_bound(model, state.tokens, state.targets, 1 / state.tokens.size)
        V = case.config.vocab_size
        value, error_ = (
            np.broadcast_to(a, bound.logits.value.shape)[..., :V] for a in bound.logits
        )
        places: list[tuple[str, Array, Array, Array]] = [("logits", state.logits, value, error_)]
        backward = list(reversed(list(state.gradients)))
        places += [(f"gradient of {n}", state.gradients[n], *bound.gradient[n]) for n in backward]
        for name, array, exact, allowed in places:
            if not np.all(np.abs(array - exact) <= allowed):
                return f"{path.name}: {name} is the first tensor that differs"
    return ""


# ---- the session -------------------------------------------------------------------------------


def check(
    program: Sequence[str],
    case: TrainerCase,
    limits: child.Limits,
    out: Path,
    run: Callable[[Path], child.Outcome] | None = None,
) -> tuple[TrainerResult, child.Outcome]:
    """One case in a temporary folder; a failing one is written below `out`."""
    with tempfile.TemporaryDirectory(prefix="conform-") as name:
        folder = Path(name)
        lay_out(case, folder)
        wanted = expected(case)
        outcome = run(folder) if run is not None else child.run(program, folder, limits)
        says = first_difference(case, wanted, outcome.out)
        tensor = first_tensor(case, folder)
        says = "; ".join(part for part in (says, tensor) if part)
        status = "differs"
        if outcome.stopped or outcome.code != 0:
            last = outcome.err.decode("utf-8", "replace").strip().splitlines()
            accident = bool(outcome.stopped) or outcome.code < 0 or bool(read_losses(outcome.out))
            status = "crashes" if accident else "refuses"
            says = outcome.ended + (f": {last[-1][:160]}" if last else "")
        elif not says:
            return TrainerResult(case.name, "passes"), outcome
        kept = write_finding(case, wanted, outcome, program, out)
        return TrainerResult(case.name, status, says, case.cause, kept), outcome


def write_finding(
    case: TrainerCase,
    wanted: Events,
    outcome: child.Outcome,
    program: Sequence[str],
    under: Path,
) -> str:
    """Write `trainer-NAME-1`, or the next free number, with the files and both lists of losses."""
    import shlex

    number = 1
    while (folder := under / f"trainer-{case.name}-{number}").exists():
        number += 1
    with os_errors(folder):
        folder.mkdir(parents=True)
    lay_out(case, folder)
    lines = [f"{w} {x:.6f}" for w, x in zip(wanted.what, wanted.losses, strict=True)]
    try:
        (folder / "expected").write_text("\n".join(lines) + "\n")
        (folder / "got").write_bytes(outcome.out)
        (folder / "cmd").write_text(f'#!/bin/sh\ncd "$(dirname "$0")" && {shlex.join(program)}\n')
        (folder / "cmd").chmod(0o755)
    except OSError as error:
        raise FileError(folder, (error.strerror or str(error)).lower()) from None
    return str(folder)
