"""A stepper stops after every op, and changes nothing but what it is told to."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2 import backends
from pyllm2.errors import ContextError, UsageError
from pyllm2.observe import step_text
from pyllm2.observe.step_runs import PromptRun, TrainingRun, training_run
from pyllm2.observe.step_values import Condition
from pyllm2.observe.stepper import Stepper
from pyllm2.observe.trace import trace
from pyllm2.training.trainer import clipping
from tests.observe.models import fixed, language_models
from tests.support.profiles import few

FAMILIES = ("llama2", "int8", "gpt2")
IDS = [1, 5, 7, 5]


@contextmanager
def stepping(family: str = "llama2", **options: Any) -> Iterator[Stepper]:
    run = PromptRun(fixed(family), IDS, **options)
    with Stepper(run, compare_with=["numpy"]) as stepper:
        yield stepper


def ends(stepper: Stepper) -> Stepper:
    """The stepper after its last op."""
    stepper.go(lambda record: False)
    return stepper


@few()
@given(language_models(), st.integers(0, 40))
def test_stepping_gives_the_bits_of_the_run(drawn: Any, back: int) -> None:
    """Also after looking back; one op per `next`."""
    model, ids = drawn
    cache = model.model.new_cache(len(ids))
    rows = [model.model.forward(np.array([i]), t, cache)[-1] for t, i in enumerate(ids)]
    with Stepper(PromptRun(model, ids), compare_with=[]) as s:
        count = 1
        while s.next():
            count += 1
            for _ in range(back if count == 30 else 0):
                s.back()
            s.look_at(len(s.records) - 1)
        assert len(s.records) == count
        assert s.at_end
        last = [r.output for r in s.records if r.index % len(s.plan) == len(s.plan) - 1]
        np.testing.assert_array_equal(np.concatenate(last).reshape(len(ids), -1), np.array(rows))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_is_what_happens(family: str) -> None:
    """Every pass has the ops that were planned, at once or token by token."""
    for at_once in (False, True):
        with stepping(family, new_tokens=2, at_once=at_once) as s:
            ends(s)
            found = [(r.phase, r.layer, r.name) for r in s.records]
            assert found == s.plan * s.run.calls
            assert len(s.tokens) == len(IDS) + 2
    with Stepper(PromptRun(fixed(family), IDS, at_once=True), compare_with=[]) as s:
        ends(s)
        expected = trace(fixed(family), IDS)
        assert [r.name for r in s.trace] == [r.name for r in expected]
        np.testing.assert_array_equal(s.record.output, expected[-1].output)


def test_strides() -> None:
    """`out` finishes a layer, then a pass; `into` leads back to ops, and to lines of NumPy."""
    with stepping() as s:
        s.run_to("layer=0 op=attention")
        assert s.out()
        assert (s.record.layer, s.record.call, s.stride) == (1, 0, "layer")
        assert s.next()
        assert (s.record.layer, s.record.name) == (None, "final_norm rmsnorm")
        s.back()
        assert (s.record.layer, s.record.op) == (1, "rmsnorm")
        assert s.out()
        assert (s.record.call, s.record.op, s.stride) == (1, "embedding", "pass")
        assert s.next()
        assert s.record.call == 2
        assert s.back()
        assert (s.record.call, s.record.op) == (1, "embedding")
        assert s.into()
        assert s.into()
        assert s.stride == "op"
        s.run_to("op=rmsnorm")
        assert s.into()
        assert not s.into()
        here = s.at
        text = Path(backends.ops("numpy").__file__).read_text().splitlines()
        assert "mean_square =" in text[s.lines[0].number - 1]
        assert s.next()
        np.testing.assert_allclose(
            s.lines[1].variables["mean_square"],
            np.mean(s.record.inputs["x"] ** 2, axis=-1, keepdims=True),
        )
        np.testing.assert_array_equal(s.lines[-1].variables["returns"], s.record.output)
        assert s.evaluate("mean_square.shape") == (1, 1)
        s.out()
        assert (s.at, s.stride) == (here, "op")
        while s.finish_token():
            pass
        assert s.at_end
        assert not s.next()


def test_going_back_ends_at_the_beginning() -> None:
    with stepping() as s:
        assert s.next()
        assert s.back()
        assert not s.back()
        assert s.at == 0
        s.into()
        assert s.back()  # out of the lines
        assert s.stride == "op"


@pytest.mark.parametrize(
    ("condition", "op"),
    [
        ("layer=1 op=attention", "attention"),
        ("weight=w2", "matmul"),
        ("call=1 op=swiglu", "swiglu"),
        ("op=rmsnorm |out| > 0", "rmsnorm"),
        ("gate.shape[-1] == 24", "swiglu"),
    ],
)
def test_running_to_a_condition(condition: str, op: str) -> None:
    with stepping() as s:
        assert s.run_to(condition)
        assert s.record.op == op
        wanted = Condition.parse(condition)
        assert not any(wanted(r) for r in s.records[1:-1])


def test_a_condition_that_is_never_true_leads_to_the_end() -> None:
    with stepping() as s:
        assert not s.run_to("not finite")
        assert s.at_end
        assert not s.run_to("nosuch > 3")


@pytest.mark.parametrize(
    "text",
    ["", "colour=3", "layer=x", "out >", "1 +", "layer=1 )", "a b"],
)
def test_a_wrong_condition_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Condition.parse(text)


def test_a_condition_that_fails_stops_there() -> None:
    with stepping() as s:
        with pytest.raises(UsageError, match=r"out\.nosuch: AttributeError"):
            s.run_to("out.nosuch")
        assert s.at == 1
        with pytest.raises(UsageError, match="division"):
            s.run_to("1 / 0")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", ["numpy", "c"])
def test_a_changed_input_is_for_its_op_only(family: str, backend: str) -> None:
    """The op is computed again; what it was given stays, for all other ops."""
    if backends.why_not(backend):
        pytest.skip(f"{backend} {backends.why_not(backend)}")
    norm = "rmsnorm" if family != "gpt2" else "layernorm_forward"
    run = PromptRun(fixed(family), IDS)
    with Stepper(run, backend, compare_with=[backend]) as s:
        s.run_to(f"layer=1 op={norm}")
        stream = s.record.inputs["x"]
        before, kept = s.record.output.copy(), stream.copy()
        assert s.assign("x[..., 0] = 30") == "x"
        assert s.record.inputs["x"][..., 0] == 30
        assert not np.array_equal(s.record.output, before)
        assert s.at in s.changed
        assert s.compare().measures[backend].inside
        np.testing.assert_array_equal(stream, kept)
        s.run_to("layer=1 weight=" + ("wq" if family != "gpt2" else "qkvw"))
        if family == "llama2":
            np.testing.assert_array_equal(s.record.inputs["x"], s.records[s.at - 1].output)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_result_goes_on(family: str) -> None:
    """Here to the logits, and so to the token that is chosen."""
    with stepping(family, new_tokens=1) as s:
        ends(s)
        first, logits = s.tokens[-1], s.records[len(s.plan) * len(IDS) - 1]
        s.look_at(logits.index)
        other = (first + 1) % 30
        s.assign(f"out[..., {other}] = 1e3")
        s.finish_token()
        assert s.tokens[-1] == other
        assert s.record.inputs[next(iter(s.record.inputs))].ravel()[0] == other


def test_a_change_in_the_past_runs_again_from_there() -> None:
    """Ops before keep the arrays that they had, and earlier changes; those after are new."""
    with stepping() as s:
        s.run_to("layer=0 weight=wv")
        s.assign("out *= 0")
        ends(s)
        untouched, before = s.records[3].output, s.record.output
        s.look_at(13)
        s.assign("out[:] = 2")
        assert len(s.records) == 14
        assert s.changed == {4, 13}
        ends(s)
        assert s.records[3].output is untouched
        assert not s.records[4].output.any()
        assert (s.records[13].output == 2).all()
        assert not np.array_equal(s.record.output, before)


def test_a_change_of_nothing_changes_nothing() -> None:
    """Every op is assigned its own values, in a random order of going back: the same bits."""
    with stepping(new_tokens=1) as s:
        ends(s)
        expected = s.record.output
        for n in (70, 10, 40, 11):
            s.look_at(n)
            s.assign("out = out")
            ends(s)
        np.testing.assert_array_equal(s.record.output, expected)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("nosuch = 1", "expected one of the op's values: x, weight, eps, out"),
        ("x + 1", "expected NAME = VALUE"),
        ("x = ", "SyntaxError"),
        ("x[0, 99] = 1", "IndexError"),
        ("x = np.zeros(3)", r"shape \(3,\), expected \(1, 16\)"),
        ("x = 'a'", "ValueError"),
        ("x = 1; out = 2", "expected NAME = VALUE"),
        ("x, out = 1, 2", "expected one of the op's values"),
    ],
)
def test_a_wrong_change_is_refused(statement: str, words: str) -> None:
    """And nothing is changed."""
    with stepping() as s:
        s.run_to("layer=0 op=rmsnorm")
        before = {n: np.asarray(a).tobytes() for n, a in s.record.inputs.items()}
        with pytest.raises(UsageError, match=words):
            s.assign(statement)
        assert {n: np.asarray(a).tobytes() for n, a in s.record.inputs.items()} == before
        assert not s.changed


def test_ids_and_sizes_are_checked_before_an_op_of_c_gets_them() -> None:
    """An id outside the vocabulary, a number of heads; another id is welcome."""
    with stepping("gpt2") as s:
        for wrong in ("tokens[0] = 30", "tokens[0] = -1", "tokens[0] = 2**40"):
            with pytest.raises(UsageError, match="expected ids from 0 to 29"):
                s.assign(wrong)
        before = s.record.output.copy()
        s.assign("tokens[0] = 3")
        assert not np.array_equal(s.record.output, before)
        s.run_to("op=attention_forward")
        with pytest.raises(UsageError, match="a size is part of the op"):
            s.assign("NH = 0")
    with stepping("int8") as s:
        s.run_to("op=matmul_q8")
        s.assign("x[:] = 1")
        assert (s.record.inputs["x"] == 1).all()
    with stepping("llama2") as s:
        s.run_to("op=rmsnorm")
        s.record.inputs["eps"] = None  # an optional input takes anything
        with pytest.raises(UsageError, match="rmsnorm raises ValueError"):
            s.assign("eps = 'x'")


def test_expressions() -> None:
    with stepping() as s:
        s.run_to("layer=1 op=attention")
        assert s.evaluate("q.shape") == (1, 4, 4)
        assert s.evaluate("t['layer 0', 'swiglu', 'call 0'].op") == "swiglu"
        with pytest.raises(UsageError, match="NameError"):
            s.evaluate("nosuch")
        with pytest.raises(UsageError, match="SyntaxError"):
            s.evaluate("1 +")


def test_another_backend_from_here_on() -> None:
    """In the past too: the ops after it are computed by the other."""
    if backends.why_not("c"):
        pytest.skip(f"c {backends.why_not('c')}")
    with stepping() as s:
        ends(s)
        s.look_at(12)
        s.use("c-strict")
        ends(s)
        assert set(s.computed_by[:12]) == {"numpy"}
        assert set(s.computed_by[12:]) == {"c-strict"}
        assert len(s.computed_by) == len(s.records)
        with pytest.raises(Exception, match="choose from"):
            s.use("fortran")


@pytest.mark.parametrize("family", ["llama2", "gpt2"])
def test_training_ends_at_the_parameters_of_the_trainer(family: str) -> None:
    """Two updates, op by op, give the weights of two updates in one piece; then `next` is over."""
    model = fixed(family)
    x, y = np.array([IDS, IDS[::-1]]), np.array([IDS[::-1], IDS])
    run = TrainingRun(model, x, y, updates=2)
    optimizer = backends.ops("numpy", package="training")
    trainable = model.trainable
    params = type(trainable.params)(trainable.params.shapes, trainable.params.flat.copy())
    m, v = params.zeros_like(), params.zeros_like()
    again = type(trainable)(trainable.config, params, trainable.engine)
    decayed = "attention_norm ffn_norm final_norm ln1w ln1b ln2w ln2b lnfw lnfb qkvb attprojb fcb"
    for t in (1, 2):
        grads = params.zeros_like()
        again.add_gradient(x, y, float(np.float32(1 / x.size)), grads, fresh=True)
        scale = clipping(optimizer.global_norm(grads.flat), run.clip)
        for name in params:
            decay = 0.0 if name in f"{decayed} fcprojb".split() else run.weight_decay
            arrays = [p[name].reshape(-1) for p in (params, grads, m, v)]
            rest = (t, run.learning_rate, run.beta1, run.beta2, run.epsilon, decay, scale)
            optimizer.adamw_update(*arrays, *rest)
    with Stepper(run, compare_with=["numpy"]) as s:
        assert s.finish_token()
        assert (s.record.phase, s.record.call) == ("forward", 1)
        ends(s)
        assert [(r.phase, r.layer, r.name) for r in s.records] == s.plan * 2
        updates = [r for r in s.records if r.op == "adamw_update"]
        found = {r.weight: r.outputs["w"] for r in updates}
        for name in params:
            np.testing.assert_array_equal(found[name], params[name].reshape(-1))
        assert s.compare().measures["numpy"].inside
        assert all(r.inputs["w"].tobytes() != r.outputs["w"].tobytes() for r in s.records[-3:])


@pytest.mark.parametrize("backend", backends.NAMES)
def test_every_backend_trains(backend: str) -> None:
    """The optimizer of each names its arguments as the specification does."""
    if backends.why_not(backend):
        pytest.skip(f"{backend} {backends.why_not(backend)}")
    with Stepper(training_run(fixed("gpt2"), IDS), backend, compare_with=[backend]) as s:
        ends(s)
        assert s.error is None
        names = "w dw m v t lr beta1 beta2 eps weight_decay scale".split()
        assert list(s.record.inputs) == names
        assert not [n for r in s.records for n in r.inputs if n.startswith("arg")]
        assert s.compare().measures[backend].inside


def test_weights_that_are_set_in_an_update_are_used_in_the_next() -> None:
    run = training_run(fixed("llama2"), IDS, updates=2)
    with Stepper(run, compare_with=[]) as s:
        s.run_to("op=adamw_update weight=final_norm")
        s.assign("w_new[:] = 7")
        assert (s.record.inputs["w"] != 7).all()
        s.run_to("op=rmsnorm weight=final_norm")
        assert (s.record.inputs["weight"] == 7).all()
        s.look_at(0)
        s.run_to("op=rmsnorm weight=final_norm")  # the past keeps its weights
        assert (s.record.inputs["weight"] != 7).all()
    assert (fixed("llama2").model.weights.final_norm != 7).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tree_has_every_op_once(family: str) -> None:
    """Ops outside of layers, a line per layer, the ops of ours; one of them is where we are."""
    with stepping(family) as s:
        for _ in range(2 * len(s.plan) - 1):
            nodes = step_text.tree(s)
            assert sum(n.here for n in nodes if n.depth or not n.label.startswith("layer")) == 1
            ops = sum(n.ops for n in nodes) + sum(not n.label.startswith("layer") for n in nodes)
            assert ops == len(s.plan)
            assert s.next()


def test_what_is_impossible_is_refused() -> None:
    with pytest.raises(ContextError):
        PromptRun(fixed("llama2"), IDS, new_tokens=100)
    with pytest.raises(UsageError, match="at least 2 tokens"):
        training_run(fixed("llama2"), [1])
    with stepping() as s, pytest.raises(UsageError, match="there are ops 0 to 0"):
        s.look_at(3)


def test_an_error_of_the_model_ends_the_run() -> None:
    """The thread says what it was."""
    with stepping() as s:
        s.run = PromptRun(fixed("llama2"), IDS)
        s.run.ids = [1, 500]
        s._rewind()
        s._begin()
        ends(s)
        assert isinstance(s.error, IndexError)


def test_ctrl_c_stops_after_the_op_that_runs() -> None:
    """And the run can go on."""
    with stepping(new_tokens=4) as s:

        def press(record: Any) -> bool:
            if record.index == 40:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                until = time.monotonic() + 60
                while not s.interrupted and time.monotonic() < until:
                    time.sleep(0.005)
            return False

        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            assert s.go(press)
        finally:
            signal.signal(signal.SIGINT, before)
        assert s.interrupted
        assert 40 <= s.at < len(s.plan) * s.run.calls - 1
        at = s.at
        assert s.next()
        assert s.at == at + 1
        assert not s.interrupted


def test_many_ends_leave_no_thread() -> None:
    before = threading.active_count()
    for _ in range(5):
        with stepping() as s:
            s.next()
            s.back()
            s.assign("out[:] = 0")
    assert threading.active_count() == before
