"""The training loop, for any model: validate, sample, save, learn; and again.

A model is asked for `params`, `losses(x, y)`, `begin_update(step)` and `add_gradient(x, y, …)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import NotFiniteError
from pyllm2.training.checkpoint import Checkpoint
from pyllm2.training.folder import RunFolder
from pyllm2.training.log import training_line, validation_line
from pyllm2.training.outlier import OutlierDetector, is_outlier
from pyllm2.training.parameters import Parameters
from pyllm2.training.recipe import Plan, Recipe
from pyllm2.training.report import Report, Update

Array = NDArray[np.float32]
Tokens = NDArray[np.integer]


class Model(Protocol):
    """What the loop needs of a model; `pyllm2.gpt2.model.GPT2` is one."""

    params: Parameters

    def losses(self, tokens: Tokens, targets: Tokens) -> Array: ...

    def begin_update(self, step: int) -> None: ...

    def add_gradient(
        self, tokens: Tokens, targets: Tokens, dloss: float, grads: Parameters, fresh: bool
    ) -> Array: ...


class Optimizer(Protocol):
    """The functions of `pyllm2.training.ops`, under the same names."""

    adamw_update: Any
    global_norm: Any


class Loader(Protocol):
    """Where batches come from; `pyllm2.training.loader.DataLoader` is one."""

    num_batches: int

    def next_batch(self) -> tuple[Tokens, Tokens]: ...

    def reset(self) -> None: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


class Trainer:
    """A run: the model, what the optimizer remembers, where the data is read, which step is next.

    decayed: names of the parameters that decay where the recipe's rule is "matrices"
    identity: what else must be the same when the run is resumed; it goes into every checkpoint
    sample: makes some text, as token ids   stopped: asked after every step
    """

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        recipe: Recipe,
        plan: Plan,
        train_data: Loader,
        validation_data: Loader,
        folder: RunFolder,
        decayed: tuple[str, ...],
        identity: dict[str, Any],
        sample: Callable[[], list[int]],
        report: Report | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model, self.optimizer, self.recipe, self.plan = model, optimizer, recipe, plan
        self.train_data, self.validation_data = train_data, validation_data
        self.folder, self.identity = folder, identity
        self.sample, self.report, self.stopped = sample, report or Report(), stopped
        self.step = 0  # the update that comes next
        self.saved: int | None = None  # the step of the newest checkpoint
        self.grads = model.params.zeros_like()
        self.m, self.v = model.params.zeros_like(), model.params.zeros_like()
        self.loss_outliers, self.norm_outliers = OutlierDetector(), OutlierDetector()
        names = tuple(model.params) if recipe.decay == "all" else decayed
        self.pieces = decay_pieces(model.params.shapes, names)

    # ---- the loop ----------------------------------------------------------------------------

    def run(self) -> bool:
        """Train until the recipe's last step (True) or until stopped (False); both are saved.

        Raises NotFiniteError; then the checkpoints are those from before.
        """
        recipe, plan = self.recipe, self.plan
        self.report.begin(self.step)
        while True:
            last = self.step == recipe.steps
            if last or due(self.step, plan.validate_every, from_start=True):
                self.validate()
            if plan.sample_every and (last or due(self.step, plan.sample_every)):
                self.report.sample(self.step, self.sample())
            if last or due(self.step, plan.save_every):
                self.save()
            if last:
                return True
            self.learn()
            if self.stopped() and self.step < recipe.steps:
                self.save()
                return False

    def validate(self) -> None:
        """The mean loss over the first batches of the validation data."""
        self.validation_data.reset()
        count = self.plan.validation_batches or self.validation_data.num_batches
        total = np.float32(0)
        with np.errstate(all="ignore"):
            for _ in range(count):
                total += mean_loss(self.model.losses(*self.validation_data.next_batch()))
            loss = float(total / np.float32(count))
        self.require_finite("validation loss", loss)
        self.folder.log.add(validation_line(self.step, loss))
        self.report.validation(self.step, loss)

    def learn(self) -> None:
        """One step: the gradient of some batches, and down it, unless the step is an outlier."""
        recipe = self.recipe
        rate = recipe.rate(self.step)
        with np.errstate(all="ignore"):  # what is not finite is refused, in words
            loss = self.gradient()
            norm = float(self.optimizer.global_norm(self.grads.flat))
        self.require_finite("loss", loss)
        self.require_finite("gradient norm", norm)
        z_loss, z_norm = self.loss_outliers.update(loss), self.norm_outliers.update(norm)
        skipped = is_outlier(z_loss, recipe.skip_loss_z) or is_outlier(z_norm, recipe.skip_norm_z)
        if not skipped:
            with np.errstate(all="ignore"):  # what becomes of it is never saved if not finite
                self.descend(rate, clipping(norm, recipe.clip))
        self.folder.log.add(training_line(self.step, loss, rate, norm))
        self.step += 1
        self.report.update(Update(self.step, loss, rate, norm, z_loss, z_norm, skipped))

    def gradient(self) -> float:
        """Fill `grads` with the gradient of the mean loss over all micro-steps; that loss."""
        recipe = self.recipe
        dloss = float(np.float32(1) / np.float32(recipe.total_batch))
        self.model.begin_update(self.step)
        total = 0.0
        for micro_step in range(recipe.micro_steps):
            x, y = self.train_data.next_batch()
            losses = self.model.add_gradient(x, y, dloss, self.grads, fresh=micro_step == 0)
            total += float(mean_loss(losses))
        return total / recipe.micro_steps

    def descend(self, rate: float, scale: float) -> None:
        """AdamW on every parameter; weight decay on those that the rule names."""
        r = self.recipe
        for piece, decays in self.pieces:
            self.optimizer.adamw_update(
                self.model.params.flat[piece], self.grads.flat[piece],
                self.m.flat[piece], self.v.flat[piece],
                self.step + 1, rate, r.beta1, r.beta2, r.epsilon,
                r.weight_decay if decays else 0.0, scale,
            )  # fmt: skip

    def require_finite(self, what: str, value: float) -> None:
        """Raises NotFiniteError, which says what may be gone back to."""
        if not np.isfinite(value):
            best = self.folder.newest()
            back = f"the last good checkpoint is {best}" if best else "no checkpoint was written"
            raise NotFiniteError(f"step {self.step}: {what} is {value}: stopped; {back}")

    # ---- checkpoints -------------------------------------------------------------------------

    def save(self) -> None:
        """Write everything that the next step depends on, unless it is written already."""
        if self.saved == self.step:
            return
        params = self.model.params.flat
        for what, array in (("parameter", params), ("m", self.m.flat), ("v", self.v.flat)):
            if not np.isfinite(array).all():  # of a loss that does not yet know
                self.require_finite(f"one {what}", float(array[~np.isfinite(array)][0]))
        path = self.folder.save(
            Checkpoint(
                step=self.step,
                identity=self.identity,
                params=params,
                m=self.m.flat,
                v=self.v.flat,
                loss_outliers=self.loss_outliers.state,
                norm_outliers=self.norm_outliers.state,
                loader=self.train_data.state(),
            ),
            self.plan.keep,
        )
        self.saved = self.step
        self.report.saved(self.step, path)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on where `save` was called. What the loader refuses leaves everything as it was."""
        self.train_data.restore(checkpoint.loader)
        self.step = self.saved = checkpoint.step
        self.model.params.flat[...] = checkpoint.params
        self.m.flat[...], self.v.flat[...] = checkpoint.m, checkpoint.v
        self.loss_outliers.state = checkpoint.loss_outliers
        self.norm_outliers.state = checkpoint.norm_outliers


def due(step: int, every: int, from_start: bool = False) -> bool:
    """Whether something that happens every so many steps happens now; 0 is never."""
    return every > 0 and step % every == 0 and (step > 0 or from_start)


def mean_loss(losses: Array) -> np.float32:
    """The mean over (B, T), added one after the other in float32: the original's bits."""
    return np.cumsum(losses.reshape(-1), dtype=np.float32)[-1] / np.float32(losses.size)


def clipping(norm: float, longest: float) -> float:
    """What the gradient is multiplied by so that it is no longer than `longest` (0: any length)."""
    return longest / norm if 0 < longest < norm else 1.0


def decay_pieces(
    shapes: dict[str, tuple[int, ...]], decayed: tuple[str, ...]
) -> list[tuple[slice, bool]]:
    """The flat buffer in pieces that decay or do not; neighbours alike are one piece."""
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
