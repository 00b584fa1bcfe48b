"""The training loop: what an update computes, when events are due, what stops a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllm2.errors import NotFiniteError
from pyllm2.gpt2.training import MATRICES
from pyllm2.training import ops
from pyllm2.training.losses import mean_loss
from pyllm2.training.recipe import Plan
from pyllm2.training.report import Update
from pyllm2.training.trainer import Trainer, clipping, decay_pieces, due
from tests.support.toy_training import CONFIG, PLAN, Record, make_trainer, parameters


def finished(data: Path, **options: Any) -> tuple[Trainer, Record]:
    """A trainer after its last step, and the events of its run."""
    record = Record()
    trainer = make_trainer(data, report=record, **options)
    assert trainer.run()
    return trainer, record


def test_training_lowers_the_validation_loss(data: Path) -> None:
    """The data is learnable: eight of ten tokens follow from the token before."""
    _, record = finished(data, steps=60, plan=Plan(validate_every=20, validation_batches=0))
    assert list(record.validations) == [0, 20, 40, 60]
    assert record.validations[60] < record.validations[0] - 0.25
    assert [u.done for u in record.updates] == list(range(1, 61))


def test_an_update_is_one_adamw_step_on_the_mean_gradient(data: Path) -> None:
    """The parameters after one update equal those computed without the trainer."""
    trainer = make_trainer(
        data, clip=0.0, learning_rate=0.5, warmup=2, schedule="linear", decay="all"
    )
    w, grads = parameters(), parameters().zeros_like()
    twin = make_trainer(data)
    losses = []
    for _ in range(2):
        x, y = twin.train_data.next_batch()
        acts = twin.model.forward(x, y)  # type: ignore[attr-defined]
        grads.flat += twin.model.backward(acts, np.full_like(acts.losses, 1 / 16)).flat  # type: ignore[attr-defined]
        losses.append(acts.losses.mean())
    zero = np.zeros_like(w.flat)
    ops.adamw_update(w.flat, grads.flat, zero, zero.copy(), 1, 0.25, 0.9, 0.95, 1e-8, 0.1)
    trainer.update()
    np.testing.assert_array_equal(trainer.model.params.flat, w.flat)
    update = trainer.report.updates[0]  # type: ignore[attr-defined]
    assert update.loss == pytest.approx(np.mean(losses), rel=1e-6)
    assert update.norm == ops.global_norm(grads.flat)
    assert (update.rate, update.done, trainer.step) == (0.25, 1, 1)


def test_every_update_has_the_rate_of_the_schedule(data: Path) -> None:
    """Update number s uses the learning rate of step s."""
    trainer, record = finished(data, steps=6, schedule="linear", warmup=2)
    assert [u.rate for u in record.updates] == [trainer.recipe.rate(step) for step in range(6)]
    assert len({u.rate for u in record.updates}) == 4


def test_bias_correction_counts_skipped_updates(data: Path) -> None:
    """AdamW's step number starts at 1 and counts every update, skipped ones included."""
    trainer = make_trainer(data, skip_loss_z=0.5)
    seen = []

    class Spy:
        global_norm = staticmethod(ops.global_norm)

        @staticmethod
        def adamw_update(w: Any, dw: Any, m: Any, v: Any, t: int, *rest: Any) -> None:
            seen.append(t)

    trainer.optimizer = Spy
    trainer.update()
    trainer.loss_outliers.update = lambda value: 0.6  # type: ignore[method-assign]
    trainer.update()
    trainer.loss_outliers.update = lambda value: 0.4  # type: ignore[method-assign]
    trainer.update()
    assert sorted(set(seen)) == [1, 3]
    assert [u.skipped for u in trainer.report.updates] == [False, True, False]  # type: ignore[attr-defined]


@pytest.mark.parametrize("which", ["loss", "norm"])
def test_a_skipped_update_consumes_its_data(data: Path, which: str) -> None:
    """Parameters and moments are unchanged; data position and step number advance."""
    trainer = make_trainer(data, **{f"skip_{which}_z": 2.0})
    getattr(trainer, f"{which}_outliers").update = lambda value: 2.5
    before = trainer.model.params.flat.copy()
    trainer.update()
    np.testing.assert_array_equal(trainer.model.params.flat, before)
    assert not trainer.m.any()
    assert trainer.step == 1
    assert trainer.train_data.state()["sample"] == 2


def test_a_step_is_saved_once(data: Path) -> None:
    """A second `save` at the same step writes nothing."""
    trainer = make_trainer(data)
    trainer.save()
    trainer.save()
    trainer.update()
    trainer.save()
    assert trainer.report.saves == [0, 1]  # type: ignore[attr-defined]


def test_both_outlier_detectors_see_every_update(data: Path) -> None:
    """The windows of loss and norm contain skipped updates too."""
    trainer, record = finished(data, steps=5, skip_loss_z=1.0)
    for detector, values in (
        (trainer.loss_outliers, [u.loss for u in record.updates]),
        (trainer.norm_outliers, [u.norm for u in record.updates]),
    ):
        assert detector.count == 5
        np.testing.assert_array_equal(detector.values[:5], values)


@pytest.mark.parametrize(
    ("norm", "limit", "expected"),
    [
        (2.0, 1.0, 0.5),
        (1.0, 1.0, 1.0),
        (0.5, 1.0, 1.0),
        (8.0, 2.0, 0.25),
        (8.0, 0.0, 1.0),
        (0.0, 1.0, 1.0),
    ],
)
def test_clipping_limits_the_gradient_norm(norm: float, limit: float, expected: float) -> None:
    """The factor brings a longer gradient to exactly the limit; a limit of 0 disables clipping."""
    assert clipping(norm, limit) == expected


def test_clipping_reaches_the_optimizer(data: Path) -> None:
    """The first moment after one update is (1 - β1) times the clipped gradient."""
    trainer = make_trainer(data, clip=0.01)
    trainer.update()
    norm = trainer.report.updates[0].norm  # type: ignore[attr-defined]
    assert norm > 0.01
    # 1 - β1 is rounded to float32, and each element three times more
    assert ops.global_norm(trainer.m) == pytest.approx(0.1 * 0.01, rel=1e-6)


def test_weight_decay_changes_the_parameters_that_the_rule_selects(data: Path) -> None:
    """Runs with and without weight decay differ in exactly the selected parameters."""
    plain, matrices, everything = (
        finished(data, steps=1, weight_decay=decay, decay=rule)[0].model.params
        for decay, rule in ((0.0, "all"), (0.5, "matrices"), (0.5, "all"))
    )
    for name in plain:
        in_matrices = not np.array_equal(plain[name], matrices[name])
        assert in_matrices == (name in MATRICES), name
        assert not np.array_equal(plain[name], everything[name]), name


def test_decay_pieces_cover_all_parameters_once() -> None:
    """The slices are adjacent, in order, and equal neighbours are merged."""
    pieces = decay_pieces(CONFIG.shapes(), MATRICES)
    assert [decays for _, decays in pieces] == [True, False] * 5
    ends = [0, *(piece.stop for piece, _ in pieces)]
    assert [piece.start for piece, _ in pieces] == ends[:-1]
    assert ends[-1] == CONFIG.parameters()
    assert decay_pieces({"a": (2, 3), "b": (4,)}, ("a", "b")) == [(slice(0, 10), True)]


def test_the_mean_loss_is_summed_in_order_in_float32() -> None:
    """Summed in order, 2²⁴ + 1 + 1 is 2²⁴ in float32, as in llm.c; pairwise it would be 2²⁴ + 2."""
    losses = np.array([[2.0**24, 1.0], [1.0, 0.0]], np.float32)
    assert mean_loss(losses) == 2.0**22
    assert mean_loss(losses).dtype == np.float32


@pytest.mark.parametrize(
    ("every", "from_start", "expected"),
    [(0, True, []), (0, False, []), (3, True, [0, 3, 6]), (3, False, [3, 6])],
)
def test_events_are_due_at_multiples_of_their_interval(
    every: int, from_start: bool, expected: list[int]
) -> None:
    """An interval of 0 is never due; step 0 counts only for validation (`from_start`)."""
    assert [step for step in range(8) if due(step, every, from_start)] == expected


def test_events_of_a_run(data: Path) -> None:
    """Validation, samples and checkpoints come at their intervals and after the last step."""
    plan = Plan(validate_every=4, validation_batches=1, sample_every=3, save_every=5)
    trainer, record = finished(data, steps=11, plan=plan)
    assert list(record.validations) == [0, 4, 8, 11]
    assert list(record.samples) == [3, 6, 9, 11]
    assert record.saves == [5, 10, 11]
    assert [c.step for c in trainer.folder.checkpoints] == [5, 10, 11]  # type: ignore[attr-defined]


def test_validation_uses_the_first_batches_each_time(data: Path) -> None:
    """The loss is the mean over the first batches (0: all); the parameters are unchanged."""
    trainer = make_trainer(data)
    for count in (1, 3, 0):
        trainer.plan = Plan(validation_batches=count)
        trainer.validate()
        loader = trainer.validation_data
        loader.reset()
        batches = [loader.next_batch() for _ in range(count or loader.num_batches)]
        expected = np.mean([trainer.model.losses(*batch).mean(dtype=float) for batch in batches])
        found = trainer.report.validations[0]  # type: ignore[attr-defined]
        assert found == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(trainer.model.params.flat, parameters().flat)


def test_a_stopped_run_finishes_its_step_and_saves_once(data: Path) -> None:
    """A checkpoint due at the same step is not written twice; a stop at the end changes nothing."""
    for stop_after, finished in ((4, False), (5, False), (12, True)):
        record = Record()
        trainer = make_trainer(data, report=record, plan=PLAN)
        trainer.stopped = lambda record=record, n=stop_after: len(record.updates) >= n
        assert trainer.run() is finished
        assert trainer.step == stop_after
        assert record.saves[-1] == stop_after
        assert len(record.saves) == len(set(record.saves))


# ---- values that are not finite ----------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_update(data: Path, value: float) -> None:
    """The message names the step; parameters and moments are those of the step before."""
    trainer = make_trainer(data)
    trainer.update()
    before = [a.copy() for a in (trainer.model.params.flat, trainer.m, trainer.v)]
    real = trainer.model.add_gradient

    def broken(*arguments: Any, **named: Any) -> Any:
        losses = real(*arguments, **named).copy()
        losses[0, 0] = value
        return losses

    trainer.model.add_gradient = broken  # type: ignore[method-assign]
    with pytest.raises(NotFiniteError, match=rf"step 1: loss is {value}: stopped; no checkpoint"):
        trainer.update()
    for array, old in zip((trainer.model.params.flat, trainer.m, trainer.v), before, strict=True):
        np.testing.assert_array_equal(array, old)
    assert trainer.step == 1
    assert trainer.loss_outliers.count == 1  # the detectors did not see the value


def test_a_gradient_that_is_not_finite_stops_the_run(data: Path) -> None:
    """The gradient norm is checked even if the loss is finite."""
    trainer = make_trainer(data)
    real = trainer.model.add_gradient

    def broken(x: Any, y: Any, dloss: float, grads: Any, fresh: bool) -> Any:
        losses = real(x, y, dloss, grads, fresh)
        grads.lnfb[0] = math.inf
        return losses

    trainer.model.add_gradient = broken  # type: ignore[method-assign]
    with pytest.raises(NotFiniteError, match="step 0: gradient norm is inf: stopped"):
        trainer.update()


def test_a_validation_loss_that_is_not_finite_stops_the_run(data: Path) -> None:
    """The run stops before it saves."""
    trainer = make_trainer(data)
    trainer.model.params.lnfb[0] = math.nan
    with pytest.raises(NotFiniteError, match="step 0: validation loss is nan"):
        trainer.run()
    assert trainer.folder.checkpoints == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("which", ["model.params", "m", "v"])
def test_a_state_that_is_not_finite_is_never_saved(data: Path, which: str) -> None:
    """`save` checks parameters and moments: an update may have broken them after its loss."""
    trainer = make_trainer(data)
    owner = trainer.model.params if which == "model.params" else getattr(trainer, which)
    owner.flat[3] = math.nan
    with pytest.raises(NotFiniteError, match="is nan: stopped; no checkpoint was written"):
        trainer.save()
    assert trainer.folder.checkpoints == []  # type: ignore[attr-defined]


def test_a_report_ignores_events_by_default() -> None:
    """The base class accepts every event."""
    from pyllm2.training.report import Report

    report = Report()
    report.update(Update(1, 1.0, 1.0, 1.0, 1.0, 1.0, False))
    report.validation(1, 1.0)
    report.sample(1, [])
    report.saved(1, "")
