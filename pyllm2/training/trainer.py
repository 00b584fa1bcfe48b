"""The training loop, for any model: validate, sample, save, update; repeat.

A model provides `params`, `losses(x, y)`, `begin_update(step, …)` and `add_gradient(x, y, …)`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import NotFiniteError
from pyllm2.formats.safetensors_file import Blocks
from pyllm2.parameters import Parameters
from pyllm2.training.bits import bits_per_byte
from pyllm2.training.checkpoint import Checkpoint, processes_of
from pyllm2.training.folder import NoFolder, RunFolder
from pyllm2.training.log import training_line, validation_line
from pyllm2.training.losses import mean_loss
from pyllm2.training.outlier import OutlierDetector, is_outlier
from pyllm2.training.processes import OneProcess, Processes, blocks, shares
from pyllm2.training.recipe import Plan, Recipe
from pyllm2.training.report import Report, Update

Array = NDArray[np.float32]
Tokens = NDArray[np.integer]


class Model(Protocol):
    """What the loop needs of a model: `TrainableLlama2` and `TrainableGPT2` have it."""

    params: Parameters

    def losses(self, tokens: Tokens, targets: Tokens) -> Array: ...

    def begin_update(self, step: int, micro_batch: int = 0) -> None: ...

    def add_gradient(
        self, tokens: Tokens, targets: Tokens, dloss: float, grads: Parameters, fresh: bool
    ) -> Array: ...


class Optimizer(Protocol):
    """The functions of `pyllm2.training.ops`, under the same names."""

    adamw_update: Any
    global_norm: Any


class Loader(Protocol):
    """Source of batches: `pyllm2.training.loader.DataLoader`."""

    num_batches: int

    def next_batch(self) -> tuple[Tokens, Tokens]: ...

    def reset(self) -> None: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...

    def go_to(self, batches: int) -> None: ...


class Trainer:
    """A run: model, optimizer state, data position and step.

    decayed: names of the parameters with weight decay under the rule "matrices"
    identity: JSON that must match when the run is resumed; stored in every checkpoint
    sample: returns sample text as token ids   stopped: called after every step
    processes: of this run, see `pyllm2.training.processes` (None: one)
    zero: ZeRO-1: keep the moments of this rank's share only. The numbers are the same.
    bytes_per_token: of the validation data, for bits per byte in the log (None: not known)
    """

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        recipe: Recipe,
        plan: Plan,
        train_data: Loader,
        validation_data: Loader,
        folder: RunFolder | NoFolder,
        decayed: tuple[str, ...],
        identity: dict[str, Any],
        sample: Callable[[], list[int]],
        report: Report | None = None,
        stopped: Callable[[], bool] = lambda: False,
        processes: Processes | None = None,
        zero: bool = False,
        bytes_per_token: float | None = None,
    ) -> None:
        self.bytes_per_token = bytes_per_token
        self.model, self.optimizer, self.recipe, self.plan = model, optimizer, recipe, plan
        self.train_data, self.validation_data = train_data, validation_data
        self.folder, self.identity = folder, identity
        self.sample, self.report, self.stopped = sample, report or Report(), stopped
        self.processes: Processes = processes or OneProcess()
        self.step = 0  # the next update
        self.saved: int | None = None  # step of the newest checkpoint
        self.clock = time.monotonic
        self.saved_at = self.clock()
        self.consistent = True  # parameters and moments belong to the same step
        self.position = train_data.state()  # where the data of the next update begins
        self.grads = model.params.zeros_like()
        n, rank = model.params.flat.size, self.processes.rank
        self.shares = shares(n, self.processes.size)  # of the ranks
        self.sharded = zero and self.processes.size > 1
        self.owned = self.shares[rank] if self.sharded else slice(0, n)  # updated by this rank
        length = self.owned.stop - self.owned.start
        self.m, self.v = np.zeros(length, np.float32), np.zeros(length, np.float32)
        self.loss_outliers, self.norm_outliers = OutlierDetector(), OutlierDetector()
        names = tuple(model.params) if recipe.decay == "all" else decayed
        self.pieces = decay_pieces(model.params.shapes, names)

    # ---- the loop ----------------------------------------------------------------------------

    def run(self) -> bool:
        """Train to the recipe's last step (True) or until stopped (False); save either way.

        Raises NotFiniteError; earlier checkpoints stay as they are. After any other error, such as
        a failed read of the data, the last finished step is saved first, unless there are several
        processes: saving needs them all, and the others have met no error.
        """
        self.report.begin(self.step)
        try:
            return self._run()
        except NotFiniteError:
            raise  # a diverged state is not saved
        except Exception:
            alone = self.processes.size == 1
            if alone and self.consistent and self.step > (self.saved or 0):
                with suppress(Exception):  # the first error is the one to report
                    self.save()
            raise

    def _run(self) -> bool:
        recipe, plan = self.recipe, self.plan
        while True:
            last = self.step == recipe.steps
            if last or due(self.step, plan.validate_every, from_start=True):
                self.validate()
            if self._sample_due(last):
                self.report.sample(self.step, self.sample())
            if last or self._save_due():
                self.save()
            if last:
                return True
            self.update()
            if any(self.processes.each(self.stopped())) and self.step < recipe.steps:
                self.save()
                return False

    def _sample_due(self, last: bool) -> bool:
        every = self.plan.sample_every
        return self.processes.rank == 0 and every > 0 and (last or due(self.step, every))

    def _save_due(self) -> bool:
        if self.plan.save_every is not None:
            return due(self.step, self.plan.save_every)
        due_by_time = self.clock() - self.saved_at >= 60 * self.plan.save_minutes
        return self.processes.from_first(due_by_time)  # clocks differ

    def validate(self) -> None:
        """Compute and log the mean loss over the first validation batches."""
        self.validation_data.reset()
        count = self.plan.validation_batches or self.validation_data.num_batches
        total = np.float32(0)
        with np.errstate(all="ignore"):
            for _ in range(count):
                total += mean_loss(self.model.losses(*self.validation_data.next_batch()))
            loss = self.mean(float(total / np.float32(count)))
        self.require_finite("validation loss", loss)
        bits = bits_per_byte(loss, self.bytes_per_token) if self.bytes_per_token else None
        self.folder.log.add(validation_line(self.step, loss, bits))
        self.report.validation(self.step, loss)

    def update(self) -> None:
        """One update: accumulate the gradient, then step, unless the update is an outlier."""
        recipe = self.recipe
        rate = recipe.rate(self.step)
        with np.errstate(all="ignore"):  # non-finite values are reported below
            loss = self.gradient()
            norm = self.norm()
        self.require_finite("loss", loss)
        self.require_finite("gradient norm", norm)
        self.consistent = False
        z_loss, z_norm = self.loss_outliers.update(loss), self.norm_outliers.update(norm)
        skipped = is_outlier(z_loss, recipe.skip_loss_z) or is_outlier(z_norm, recipe.skip_norm_z)
        if not skipped:
            with np.errstate(all="ignore"):  # non-finite parameters are never saved
                self.descend(rate, clipping(norm, recipe.clip))
        self.step, self.position = self.step + 1, self.train_data.state()
        self.consistent = True
        self.folder.log.add(training_line(self.step - 1, loss, rate, norm))
        self.report.update(Update(self.step, loss, rate, norm, z_loss, z_norm, skipped))

    def gradient(self) -> float:
        """Fill `grads` with the gradient of the mean loss over all micro-batches; return the loss.

        With ZeRO-1 only this rank's share of `grads` is that of all ranks.
        """
        recipe = self.recipe
        dloss = float(np.float32(1) / np.float32(recipe.total_batch))
        self.model.begin_update(self.step, self.processes.rank * recipe.micro_steps)
        total = 0.0
        for micro_step in range(recipe.micro_steps):
            x, y = self.train_data.next_batch()
            losses = self.model.add_gradient(x, y, dloss, self.grads, fresh=micro_step == 0)
            total += float(mean_loss(losses))
        self.processes.sum_shares(self.grads.flat)
        if not self.sharded:
            self.processes.gather_shares(self.grads.flat)
        return self.mean(total / recipe.micro_steps)

    def mean(self, value: float) -> float:
        """The mean over all processes."""
        return sum(self.processes.each(value)) / self.processes.size

    def norm(self) -> float:
        """Norm of the gradient, from the norms of the shares: the same with and without ZeRO-1."""
        own = self.shares[self.processes.rank]
        norms = self.processes.each(float(self.optimizer.global_norm(self.grads.flat[own])))
        return math.hypot(*norms)

    def descend(self, rate: float, scale: float) -> None:
        """AdamW on every parameter; weight decay on those selected by the rule.

        One call per share and piece, even if this rank updates them all: where a vector begins and
        ends decides about the last bits of a fast kernel.
        """
        r, params, owned = self.recipe, self.model.params.flat, self.owned
        for share in [owned] if self.sharded else self.shares:
            for piece, decays in self.pieces:
                i = slice(max(share.start, piece.start), min(share.stop, piece.stop))
                if i.start >= i.stop:
                    continue
                kept = slice(i.start - owned.start, i.stop - owned.start)
                decay = r.weight_decay if decays else 0.0
                hyper = (self.step + 1, rate, r.beta1, r.beta2, r.epsilon, decay, scale)
                arrays = params[i], self.grads.flat[i], self.m[kept], self.v[kept]
                self.optimizer.adamw_update(*arrays, *hyper)
        if self.sharded:
            self.processes.gather_shares(params)

    def require_finite(self, what: str, value: float) -> None:
        """Raises NotFiniteError naming the last good checkpoint."""
        if not np.isfinite(value):
            best = self.folder.newest()
            back = f"the last good checkpoint is {best}" if best else "no checkpoint was written"
            raise NotFiniteError(f"step {self.step}: {what} is {value}: stopped; {back}")

    # ---- checkpoints -------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint, unless this step has been saved already."""
        if self.saved == self.step:
            return
        self._require_finite_state()
        m: Any = self.m
        v: Any = self.v
        if self.sharded:
            n = self.model.params.flat.size
            m, v = (Blocks((n,), self.processes.whole(share, n)) for share in (m, v))
        path = self.folder.save(
            Checkpoint(
                step=self.step,
                identity=self.identity,
                params=self.model.params.flat,
                m=m,
                v=v,
                loss_outliers=self.loss_outliers.state,
                norm_outliers=self.norm_outliers.state,
                loader=self.position,
            ),
            self.plan.keep,
        )
        self.saved, self.saved_at = self.step, self.clock()
        self.report.saved(self.step, path)

    def _require_finite_state(self) -> None:
        """Raises NotFiniteError: the loss was computed before the update."""
        arrays = {"parameter": self.model.params.flat, "m": self.m, "v": self.v}
        here = {
            what: float(array[~np.isfinite(array)][0])
            for what, array in arrays.items()
            if not np.isfinite(array).all()
        }
        for found in self.processes.each(here):
            for what, value in found.items():
                self.require_finite(f"one {what}", value)

    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Continue where `save` was called. If the loader refuses the state, nothing changes.

        checkpoint: None on all ranks but 0, which reads it for all of them. A run of several
        processes, or once of several, finds its place in the data by counting batches: it is where
        a run of as many processes as there are now would be at this step.
        """
        processes, c = self.processes, checkpoint
        state: Any = processes.from_first(
            c and (c.step, processes_of(c.identity), c.loader, c.loss_outliers, c.norm_outliers)
        )
        step, saved_by, loader, loss_outliers, norm_outliers = state
        if processes.size == 1 == saved_by:
            self.train_data.restore(loader)
        else:
            self.train_data.go_to(step * self.recipe.micro_steps)
        self.position = self.train_data.state()
        self.step = self.saved = step
        self.loss_outliers.state, self.norm_outliers.state = loss_outliers, norm_outliers
        params = self.model.params.flat
        self._receive(c and c.params, params, False)
        self._receive(c and c.m, self.m, self.sharded)
        self._receive(c and c.v, self.v, self.sharded)

    def _receive(self, saved: Any, here: Array, sharded: bool) -> None:
        """Fill `here`, a share or the whole of a vector of the checkpoint, which rank 0 reads."""
        n = self.model.params.flat.size
        if sharded:
            self.processes.deal(saved, n, here)
            return
        for block in blocks(slice(0, n)):
            here[block] = self.processes.from_first(None if saved is None else saved[block])


def due(step: int, every: int, from_start: bool = False) -> bool:
    """Whether an event with this interval is due at this step; an interval of 0 is never due."""
    return every > 0 and step % every == 0 and (step > 0 or from_start)


def clipping(norm: float, limit: float) -> float:
    """Factor that reduces the gradient norm to at most `limit` (0: no limit)."""
    return limit / norm if 0 < limit < norm else 1.0


def decay_pieces(
    shapes: dict[str, tuple[int, ...]], decayed: tuple[str, ...]
) -> list[tuple[slice, bool]]:
    """Slices of the flat buffer with and without weight decay; equal neighbours are merged."""
    pieces: list[tuple[slice, bool]] = []
    start = 0
    for name, shape in shapes.items():
        end, decays = start + int(np.prod(shape, dtype=np.int64)), name in decayed
        if pieces and pieces[-1][1] == decays:
            pieces[-1] = (slice(pieces[-1][0].start, end), decays)
        else:
            pieces.append((slice(start, end), decays))
        start = end
    return pieces
