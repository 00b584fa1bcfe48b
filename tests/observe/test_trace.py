"""A trace has every op of a run, and changes nothing of it."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyllm2
from pyllm2 import backends
from pyllm2.errors import ContextError, FormatError, PyLLM2Error, TokenizerError, UsageError
from pyllm2.llama2.model import Llama2
from pyllm2.observe import trace as tracing
from pyllm2.observe.files import load_trace, save_trace
from pyllm2.observe.trace import Only, trace, trace_training
from tests.observe.models import fixed, language_models
from tests.support.command import in_process
from tests.support.profiles import few

FAMILIES = ("llama2", "int8", "gpt2")
IDS = [1, 5, 7, 5, 2]
X, Y = np.array([IDS, IDS[::-1]]), np.array([IDS[::-1], IDS])


@few()
@given(language_models())
def test_a_traced_run_gives_the_bits_of_the_run(drawn: Any) -> None:
    """The result of the last op is the model's logits; every op knows its arguments' names."""
    model, ids = drawn
    found = trace(model, ids)
    np.testing.assert_array_equal(
        found[-1].output.reshape(len(ids), -1),
        model.model.forward(np.array(ids), 0, model.model.new_cache(len(ids))),
    )
    assert not [name for r in found for name in r.inputs if name.startswith("arg")]


@few()
@given(language_models())
def test_the_size_of_a_trace_is_known_before(drawn: Any) -> None:
    """The polynomial through three short traces gives the bytes of any."""
    model, ids = drawn
    found = trace(model, ids)
    assert found.nbytes == tracing.predicted_nbytes(model, len(ids))


@pytest.mark.parametrize("family", ["llama2", "gpt2"])
def test_a_training_step_is_traced(family: str) -> None:
    """Backward as well; its gradients are those of the model, and the size is known before."""
    model = fixed(family)
    found = trace_training(model, X, Y)
    _, grads = model.loss_and_grads(X, Y)
    first = grads["w2" if family == "llama2" else "fcprojw"][1]
    weight = "w2" if family == "llama2" else "fcprojw"
    record = found["layer 1", weight, "backward"]
    np.testing.assert_array_equal(record.outputs["dw"], first)
    expected = tracing.predicted_training_nbytes(model, *X.shape)  # type: ignore[call-arg]
    assert found.nbytes <= expected <= 1.1 * found.nbytes + 1000


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_has_the_same_ops(family: str) -> None:
    """Names of layer 0 are those of layer 1; the ends have the embedding and the classifier."""
    found = trace(fixed(family), IDS, new_tokens=2)
    for call in range(3):
        names = [[r.name for r in found if (r.layer, r.call) == (i, call)] for i in (0, 1)]
        assert [n.replace("layer 0", "layer 1") for n in names[0]] == names[1]
        assert len(names[0]) >= 10
    assert [r.rows for r in found.where(op=found[0].op)] == [5, 1, 1]
    assert [r.position for r in found.where(op=found[0].op)] == [0, 5, 6]


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_weights_are_in_the_trace(family: str) -> None:
    """Rows sum to 1, the future has 0, also in a pass of one token."""
    found = trace(fixed(family), IDS, new_tokens=1)
    op = "attention_forward" if family == "gpt2" else "attention"
    weights = found["layer 1", op, "call 0"].weights
    NH = 2 if family == "gpt2" else 4
    assert weights.shape == (NH, 5, 5)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)
    assert not np.triu(weights[0], 1).any()
    assert found["layer 1", op, "call 1"].weights.shape == (NH, 1, 6)


def test_attention_weights_times_values_are_its_output() -> None:
    """Also where a layer sees the last positions only; heads share keys and values."""
    model = fixed("llama2")
    narrow = replace(model.config, windows=(2, 0))
    model.model = Llama2(narrow, model.model.weights, model.model.engine)  # type: ignore[attr-defined]
    for layer in (0, 1):
        record = trace(model, IDS)[f"layer {layer}", "attention"]
        weights, v = record.weights.astype(np.float64), record.inputs["v"].astype(np.float64)
        NH, T, P = weights.shape
        shared = v[:, np.arange(NH) // (NH // v.shape[1])]  # (P, NH, hs)
        expected = np.einsum("htp,phd->thd", weights, shared).reshape(T, -1)
        # The weights are the op's own; sums of P products of weights that add up to 1.
        error = (P + 2) * 2.0**-24 * np.abs(v).max()
        np.testing.assert_allclose(record.output, expected, rtol=0, atol=error)
        assert (weights[:, 4, 2] == 0).all() == (layer == 0)


def test_records_are_found_by_words() -> None:
    """One record, or a KeyError that names what there is."""
    found = trace(fixed("llama2"), IDS)
    assert found["layer 1", "attention"].output.shape == (5, 16)
    assert found["layer 1", "wo"].op == "matmul"
    assert found["layer 1", "residual", "of wo"].name == "layer 1 residual of wo"
    assert found["layer 0", "rope", "of wk"].origins["x"].record == found["layer 0", "wk"].index
    assert found["final_norm"].layer is None
    with pytest.raises(KeyError, match=r"2 records have layer 1, rope: .*rope of wq"):
        found["layer 1", "rope"]
    with pytest.raises(KeyError, match="no record has all of layer 7"):
        found["layer 7"]
    assert len(found.where(layer=1)) == len(found.where("layer 1")) == 15
    assert isinstance(found[2:4], type(found))


def test_values_are_kept_where_they_are_wanted() -> None:
    """Others have shapes only, and cost no memory."""
    model = fixed("llama2")
    only = Only((("layer", 1), ("op", "attention")))
    found = trace(model, IDS, only=only)
    assert [r.name for r in found if r.kept] == ["layer 1 attention"]
    assert found["layer 0", "wq"].shapes["-> out"] == ((5, 16), "float32")
    assert found.nbytes == tracing.predicted_nbytes(model, 5, only) == 5 * 16 * 4
    with pytest.raises(KeyError, match="not kept"):
        _ = found["layer 0", "wq"].output


def test_the_model_is_as_before() -> None:
    """Nothing is left on it: the next run has no overhead."""
    model = fixed("llama2")
    before = dict(vars(model.model))
    trace(model, IDS)
    trace_training(model, X, Y)
    assert vars(model.model) == before
    assert type(model.trainable.ops).__name__ != "Traced"


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    model = fixed("llama2")
    with pytest.raises(ContextError, match="5 tokens and 8 new ones, context is 12"):
        trace(model, IDS, new_tokens=8)
    with pytest.raises(ContextError, match="no tokens"):
        trace(model, [])
    with pytest.raises(TokenizerError, match="token id 30"):
        trace(model, [30])


@pytest.mark.parametrize("backend", ["numba", "c", "c-strict"])
def test_the_ops_of_any_backend_are_traced(backend: str) -> None:
    if backends.why_not(backend) is not None:
        pytest.skip(f"backend {backend} {backends.why_not(backend)}")
    found = pyllm2.trace(fixed("llama2"), IDS, backend=backend)
    reference = trace(fixed("llama2"), IDS)
    assert [r.name for r in found] == [r.name for r in reference]
    np.testing.assert_allclose(found[-1].output, reference[-1].output, rtol=1e-4, atol=1e-5)


# ---- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_written_trace_is_read_back(family: str, suffix: str, tmp_path: Path) -> None:
    """Records, results, and inputs that are no weights."""
    found = trace(fixed(family), IDS, new_tokens=1)
    save_trace(found, tmp_path / f"t.{suffix}")
    again = load_trace(tmp_path / f"t.{suffix}")
    assert again.tokens == found.tokens
    for ours, theirs in zip(found, again, strict=True):
        assert (ours.name, ours.origins, ours.shapes) == (
            theirs.name,
            theirs.origins,
            theirs.shapes,
        )
        for name, array in ours.outputs.items():
            np.testing.assert_array_equal(theirs.outputs[name], array)
        for name, array in theirs.inputs.items():
            np.testing.assert_array_equal(array, ours.inputs[name])
    op = "attention_forward" if family == "gpt2" else "attention"
    np.testing.assert_array_equal(
        again["layer 1", op, "call 1"].weights, found["layer 1", op, "call 1"].weights
    )


def test_a_trace_as_text_has_a_line_per_op(tmp_path: Path) -> None:
    """JSON, with NaN as a string."""
    model = fixed("llama2")
    model.model.weights.final_norm[3] = np.nan
    found = trace(model, [1, 5])
    save_trace(found, tmp_path / "t.jsonl")
    head, *lines = map(json.loads, (tmp_path / "t.jsonl").read_text().splitlines())
    assert head["tokens"] == [1, 5]
    assert [line["name"] for line in lines] == [r.name for r in found]
    assert lines[-2]["values"]["out"][0][3] == "nan"
    assert lines[1]["values"]["out"][1] == found[1].output[1].tolist()


def _npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _lying() -> bytes:
    """A header that promises a gigabyte."""
    data = _npz(a=np.zeros(3))
    return data.replace(b"'shape': (3,), ", b"'shape': (134217728,), "[:15])


BROKEN = {
    "text": (b"hello, world", "begins with b'hell': expected an .npz or .safetensors file"),
    "empty": (b"", "expected an .npz or .safetensors file"),
    "truncated": (_npz(a=np.zeros(30))[:-60], "not a whole .npz file"),
    "objects": (_npz(a=np.array([None])), "an array of Python objects: expected numbers"),
    "no trace": (_npz(a=np.zeros(3)), "pyllm2_trace = None: expected 1, a trace"),
    "other json": (
        _npz(records=np.frombuffer(b"[1, 2", np.uint8)),
        "expected those of a trace",
    ),
    "records": (
        _npz(records=np.frombuffer(b'{"pyllm2_trace": 1, "records": [{}]}', np.uint8)),
        "expected those of a trace",
    ),
    "records of floats": (_npz(records=np.zeros(3)), "expected the bytes of a text"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_trace_is_refused(name: str, tmp_path: Path) -> None:
    """One line that names the file."""
    data, error = BROKEN[name]
    (tmp_path / "t.npz").write_bytes(data)
    with pytest.raises(FormatError) as refused:
        load_trace(tmp_path / "t.npz")
    assert str(refused.value).startswith(f"{tmp_path}/t.npz: ")
    assert error in str(refused.value)
    assert "\n" not in str(refused.value)


@few()
@given(cut=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_damaged_file_is_refused_or_read(cut: int, byte: int, tmp_path_factory: Any) -> None:
    """Never another exception than one of ours."""
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    save_trace(trace(fixed("llama2", layers=1), [1]), path)
    data = bytearray(path.read_bytes())
    data[len(data) * cut // 401] = byte
    path.write_bytes(data)
    with suppress(PyLLM2Error):
        load_trace(path)


def test_a_name_without_a_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in .npz, .safetensors or .jsonl"):
        save_trace(trace(fixed("llama2"), IDS), tmp_path / "t.txt")


# ---- the command -------------------------------------------------------------------------------

NUMPY = ("--backend", "numpy")


def test_the_command_prints_a_table_or_writes_a_file(tmp_path: Path) -> None:
    """The size is said before it starts."""
    outcome = in_process(["trace", "--ids", "1,5,7", *NUMPY, "--only", "layer=2"], tmp_path)
    assert outcome.code == 0
    assert len(outcome.out.decode().splitlines()) == 16
    assert b"3 tokens: the trace will hold 28.8 kB of results\n" in outcome.err
    for words in (["--new-tokens", "2"], ["--backward", "--force"]):
        outcome = in_process(
            ["trace", "--prompt", "One day", *NUMPY, *words, "--out", "t.npz"], tmp_path
        )
        assert (outcome.code, outcome.out) == (0, b"")
        assert load_trace(tmp_path / "t.npz").texts[-1:]


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["--out", "t.txt"], 2, b"t.txt: expected a name that ends in"),
        (["--out", "no/t.npz"], 1, b"no/t.npz: no such file"),
        (["--ids", "1,x"], 2, b"--ids: 'x': expected token ids"),
        (["--ids", "99999"], 1, b"token id 99999: the model has ids 0 to 1023"),
        (["--only", "depth=2"], 2, b"--only: 'depth=2': expected layer="),
        (["--only", "layer=two"], 2, b"expected a whole number after layer="),
        (["--backward", "--ids", "1"], 2, b"expected a prompt of at least 2 tokens"),
        (["nosuch.bin"], 1, b"nosuch.bin: no such file"),
    ],
)
def test_what_cannot_be_traced_is_one_line(
    words: list[str], code: int, error: bytes, tmp_path: Path
) -> None:
    outcome = in_process(["trace", *words, *NUMPY], tmp_path)
    assert (outcome.code, outcome.out) == (code, b"")
    assert outcome.err.splitlines()[-1].startswith(b"pyllm2: error: ")
    assert error in outcome.err
