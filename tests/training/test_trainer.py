"""The loop: what a step computes, what happens when, what stops it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllm2.errors import NotFiniteError
from pyllm2.gpt2.model import MATRICES
from pyllm2.training import ops
from pyllm2.training.recipe import Plan
from pyllm2.training.report import Update
from pyllm2.training.trainer import Trainer, clipping, decay_pieces, due, mean_loss

from .toy import CONFIG, PLAN, Record, parameters, trainer


def ran(data: Path, **options: Any) -> tuple[Trainer, Record]:
    """A run to its end."""
    record = Record()
    it = trainer(data, report=record, **options)
    assert it.run()
    return it, record


def test_it_learns(data: Path) -> None:
    """Two tokens in ten are noise, the rest can be told from the token before."""
    _, record = ran(data, steps=60, plan=Plan(validate_every=20, validation_batches=0))
    assert list(record.validations) == [0, 20, 40, 60]
    assert record.validations[60] < record.validations[0] - 0.25
    assert [u.done for u in record.updates] == list(range(1, 61))


def test_a_step_is_one_descent_along_the_mean_gradient(data: Path) -> None:
    """Every parameter after one update, from the optimizer's definition, without the loop."""
    it = trainer(data, clip=0.0, learning_rate=0.5, warmup=2, schedule="linear", decay="all")
    w, grads = parameters(), parameters().zeros_like()
    twin = trainer(data)
    losses = []
    for _ in range(2):
        x, y = twin.train_data.next_batch()
        acts = twin.model.forward(x, y)  # type: ignore[attr-defined]
        grads.flat += twin.model.backward(acts, np.full_like(acts.losses, 1 / 16)).flat  # type: ignore[attr-defined]
        losses.append(acts.losses.mean())
    zero = np.zeros_like(w.flat)
    ops.adamw_update(w.flat, grads.flat, zero, zero.copy(), 1, 0.25, 0.9, 0.95, 1e-8, 0.1)
    it.learn()
    np.testing.assert_array_equal(it.model.params.flat, w.flat)
    update = it.report.updates[0]  # type: ignore[attr-defined]
    assert update.loss == pytest.approx(np.mean(losses), rel=1e-6)
    assert update.norm == ops.global_norm(grads.flat)
    assert (update.rate, update.done, it.step) == (0.25, 1, 1)


def test_every_step_has_its_own_rate(data: Path) -> None:
    """That of the schedule at the steps before it."""
    it, record = ran(data, steps=6, schedule="linear", warmup=2)
    assert [u.rate for u in record.updates] == [it.recipe.rate(step) for step in range(6)]
    assert len({u.rate for u in record.updates}) == 4


def test_the_step_number_of_the_optimizer_counts_from_one(data: Path) -> None:
    """And goes on through skipped steps: it corrects how young the moments are."""
    it = trainer(data, skip_loss_z=0.5)
    seen = []

    class Spy:
        global_norm = staticmethod(ops.global_norm)

        @staticmethod
        def adamw_update(w: Any, dw: Any, m: Any, v: Any, t: int, *rest: Any) -> None:
            seen.append(t)

    it.optimizer = Spy
    it.learn()
    it.loss_outliers.update = lambda value: 0.6  # type: ignore[method-assign]
    it.learn()
    it.loss_outliers.update = lambda value: 0.4  # type: ignore[method-assign]
    it.learn()
    assert sorted(set(seen)) == [1, 3]
    assert [u.skipped for u in it.report.updates] == [False, True, False]  # type: ignore[attr-defined]


@pytest.mark.parametrize("which", ["loss", "norm"])
def test_an_outlier_is_skipped_and_consumes_its_data(data: Path, which: str) -> None:
    """Parameters and moments stay, the loader and the step number move on."""
    it = trainer(data, **{f"skip_{which}_z": 2.0})
    getattr(it, f"{which}_outliers").update = lambda value: 2.5
    before = it.model.params.flat.copy()
    it.learn()
    np.testing.assert_array_equal(it.model.params.flat, before)
    assert not it.m.flat.any()
    assert it.step == 1
    assert it.train_data.state()["sample"] == 2


def test_a_step_is_saved_once(data: Path) -> None:
    """However often one asks."""
    it = trainer(data)
    it.save()
    it.save()
    it.learn()
    it.save()
    assert it.report.saves == [0, 1]  # type: ignore[attr-defined]


def test_both_detectors_see_every_step(data: Path) -> None:
    """A skipped step stays in the windows, too: of the mean loss, and of the norm."""
    it, record = ran(data, steps=5, skip_loss_z=1.0)
    for detector, values in (
        (it.loss_outliers, [u.loss for u in record.updates]),
        (it.norm_outliers, [u.norm for u in record.updates]),
    ):
        assert detector.count == 5
        np.testing.assert_array_equal(detector.values[:5], values)


@pytest.mark.parametrize(
    ("norm", "longest", "expected"),
    [(2.0, 1.0, 0.5), (1.0, 1.0, 1.0), (0.5, 1.0, 1.0), (8.0, 2.0, 0.25), (8.0, 0.0, 1.0),
     (0.0, 1.0, 1.0)],
)  # fmt: skip
def test_only_a_gradient_that_is_too_long_is_shortened(
    norm: float, longest: float, expected: float
) -> None:
    """To exactly the longest; 0 allows any."""
    assert clipping(norm, longest) == expected


def test_clipping_reaches_the_optimizer(data: Path) -> None:
    """The first moment after one step is (1 - β1) · scale · gradient."""
    it = trainer(data, clip=0.01)
    it.learn()
    norm = it.report.updates[0].norm  # type: ignore[attr-defined]
    assert norm > 0.01
    # float32 (1 - β1) and three more roundings an element
    assert ops.global_norm(it.m.flat) == pytest.approx(0.1 * 0.01, rel=1e-6)


def test_decay_shrinks_what_the_rule_names(data: Path) -> None:
    """Two runs that differ in nothing else differ in just these parameters."""
    plain, matrices, everything = (
        ran(data, steps=1, weight_decay=decay, decay=rule)[0].model.params
        for decay, rule in ((0.0, "all"), (0.5, "matrices"), (0.5, "all"))
    )
    for name in plain:
        in_matrices = not np.array_equal(plain[name], matrices[name])
        assert in_matrices == (name in MATRICES), name
        assert not np.array_equal(plain[name], everything[name]), name


def test_pieces_cover_everything_once() -> None:
    """In order, neighbours alike joined."""
    pieces = decay_pieces(CONFIG.shapes(), MATRICES)
    assert [decays for _, decays in pieces] == [True, False] * 5
    ends = [0, *(piece.stop for piece, _ in pieces)]
    assert [piece.start for piece, _ in pieces] == ends[:-1]
    assert ends[-1] == CONFIG.parameters()
    assert decay_pieces({"a": (2, 3), "b": (4,)}, ("a", "b")) == [(slice(0, 10), True)]


def test_the_mean_is_added_in_order_in_float32() -> None:
    """As the original does it: 2²⁴ + 1 + 1 is 2²⁴ in float32, and 2²⁴ + 2 in any better order."""
    losses = np.array([[2.0**24, 1.0], [1.0, 0.0]], np.float32)
    assert mean_loss(losses) == 2.0**22
    assert mean_loss(losses).dtype == np.float32


@pytest.mark.parametrize(
    ("every", "from_start", "expected"),
    [(0, True, []), (0, False, []), (3, True, [0, 3, 6]), (3, False, [3, 6])],
)
def test_when_something_is_due(every: int, from_start: bool, expected: list[int]) -> None:
    """0 is never; only validation happens before the first step."""
    assert [step for step in range(8) if due(step, every, from_start)] == expected


def test_the_calendar_of_a_run(data: Path) -> None:
    """Everything at its multiples, and once more at the end."""
    plan = Plan(validate_every=4, validation_batches=1, sample_every=3, save_every=5)
    it, record = ran(data, steps=11, plan=plan)
    assert list(record.validations) == [0, 4, 8, 11]
    assert list(record.samples) == [3, 6, 9, 11]
    assert record.saves == [5, 10, 11]
    assert [c.step for c in it.folder.checkpoints] == [5, 10, 11]  # type: ignore[attr-defined]


def test_validation_is_the_mean_of_its_first_batches_each_time(data: Path) -> None:
    """The loader is reset; nothing is learned; 0 is the whole set."""
    it = trainer(data)
    for count in (1, 3, 0):
        it.plan = Plan(validation_batches=count)
        it.validate()
        loader = it.validation_data
        loader.reset()
        batches = [loader.next_batch() for _ in range(count or loader.num_batches)]
        expected = np.mean([it.model.losses(*batch).mean(dtype=float) for batch in batches])
        found = it.report.validations[0]  # type: ignore[attr-defined]
        assert found == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(it.model.params.flat, parameters().flat)


def test_it_stops_after_the_step_that_is_under_way_and_saves(data: Path) -> None:
    """Once, even where a checkpoint is due anyway; asked at the very end, it is simply done."""
    for stop_after, finished in ((4, False), (5, False), (12, True)):
        record = Record()
        it = trainer(data, report=record, plan=PLAN)
        it.stopped = lambda record=record, n=stop_after: len(record.updates) >= n
        assert it.run() is finished
        assert it.step == stop_after
        assert record.saves[-1] == stop_after
        assert len(record.saves) == len(set(record.saves))


# ---- what is not finite ------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_the_update(data: Path, value: float) -> None:
    """The message says where; parameters and moments are those of the step before."""
    it = trainer(data)
    it.learn()
    before = [a.flat.copy() for a in (it.model.params, it.m, it.v)]
    real = it.model.add_gradient

    def broken(*arguments: Any, **named: Any) -> Any:
        losses = real(*arguments, **named).copy()
        losses[0, 0] = value
        return losses

    it.model.add_gradient = broken  # type: ignore[method-assign]
    with pytest.raises(NotFiniteError, match=rf"step 1: loss is {value}: stopped; no checkpoint"):
        it.learn()
    for array, old in zip((it.model.params, it.m, it.v), before, strict=True):
        np.testing.assert_array_equal(array.flat, old)
    assert it.step == 1
    assert it.loss_outliers.count == 1  # and the detectors are not poisoned


def test_a_gradient_that_is_no_number_stops_too(data: Path) -> None:
    """Though the loss is one."""
    it = trainer(data)
    real = it.model.add_gradient

    def broken(x: Any, y: Any, dloss: float, grads: Any, fresh: bool) -> Any:
        losses = real(x, y, dloss, grads, fresh)
        grads.lnfb[0] = math.inf
        return losses

    it.model.add_gradient = broken  # type: ignore[method-assign]
    with pytest.raises(NotFiniteError, match="step 0: gradient norm is inf: stopped"):
        it.learn()


def test_a_validation_loss_that_is_no_number_stops(data: Path) -> None:
    """Before anything is sampled or saved."""
    it = trainer(data)
    it.model.params.lnfb[0] = math.nan
    with pytest.raises(NotFiniteError, match="step 0: validation loss is nan"):
        it.run()
    assert it.folder.checkpoints == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("which", ["model.params", "m", "v"])
def test_a_state_that_is_no_number_is_never_saved(data: Path, which: str) -> None:
    """A last update may have broken it, and no loss says so yet."""
    it = trainer(data)
    owner = it.model.params if which == "model.params" else getattr(it, which)
    owner.flat[3] = math.nan
    with pytest.raises(NotFiniteError, match="is nan: stopped; no checkpoint was written"):
        it.save()
    assert it.folder.checkpoints == []  # type: ignore[attr-defined]


def test_a_report_may_say_nothing() -> None:
    """The base hears of everything and prints nothing."""
    from pyllm2.training.report import Report

    report = Report()
    report.update(Update(1, 1.0, 1.0, 1.0, 1.0, 1.0, False))
    report.validation(1, 1.0)
    report.sample(1, [])
    report.saved(1, "")
