"""int8 in groups: rounding, products, files and whole models."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import pyllm2
from pyllm2 import backends
from pyllm2.cli import main
from pyllm2.formats.llama2c_q8 import fitting_group_size, quantize_weights
from pyllm2.inference.compare import compare_on_text
from pyllm2.llama2 import ops
from pyllm2.llama2.checkpoint import export, load_float32, save_parameters
from pyllm2.llama2.model import Llama2
from pyllm2.parameters import Quantized
from pyllm2.testing.llama2 import strategies
from tests.support.profiles import few, writes_files
from tests.support.tested import BACKENDS, engine_of, ops_of

F32 = np.float32
# The scale is exactly 1, so these quotients are halves, of either sign, odd and even below.
HALVES = (np.array([[127, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, -126.5]], F32), 8)


def plain_quantize(row: Any, group_size: int, half_to_even: bool) -> tuple[list[int], list[Any]]:
    """The quantisation rule, one number at a time."""
    values, scales = [0] * len(row), []
    for start in range(0, len(row) - group_size + 1, group_size):
        group = row[start : start + group_size]
        scale = F32(max(abs(group))) / F32(127)
        scales.append(scale)
        for i, number in enumerate(group):
            quotient = float(F32(number) / scale) if scale else 0.0
            if half_to_even:
                rounded = round(quotient)
            else:
                rounded = int(math.copysign(math.floor(abs(quotient) + 0.5), quotient))
            values[start + i] = max(-127, min(127, rounded))
    return values, scales


@pytest.mark.parametrize("backend", BACKENDS)
@given(inputs=strategies.quantize_inputs())
@example(inputs=HALVES)
def test_activations_round_half_away_from_zero(backend: str, inputs: Any) -> None:
    """On every backend values and scales equal those of the plain rule."""
    x, group_size = inputs
    values, scales = ops_of(backend).quantize(x, group_size)
    assert (values.dtype, scales.dtype) == (np.int8, np.float32)
    for t, row in enumerate(x):
        with np.errstate(all="ignore"):
            expected, expected_scales = plain_quantize(row, group_size, half_to_even=False)
        assert values[t].tolist() == expected
        np.testing.assert_array_equal(scales[t], np.array(expected_scales, F32))


@given(inputs=strategies.quantize_inputs())
@example(inputs=HALVES)
def test_weights_round_half_to_even(inputs: Any) -> None:
    """As in the original's export, which rounds differently from its engine."""
    x, group_size = inputs
    for row in x:
        values, scales = quantize_weights(row, group_size)
        with np.errstate(all="ignore"):
            expected, expected_scales = plain_quantize(row, group_size, half_to_even=True)
        assert values.tolist() == expected
        np.testing.assert_array_equal(scales, np.array(expected_scales, F32))


@pytest.mark.parametrize("backend", BACKENDS)
@given(inputs=strategies.quantize_inputs())
def test_dequantized_numbers_are_off_by_half_a_scale_at_most(backend: str, inputs: Any) -> None:
    """Elements after the last whole group become zero."""
    x, group_size = inputs
    values, scales = ops.quantize(x, group_size)
    whole = scales.shape[1] * group_size
    for t in range(len(x)):
        back = ops_of(backend).dequantize(values[t], scales[t], group_size)
        half = np.repeat(scales[t], group_size).astype(np.float64) / 2
        slack = 1e-6 * np.abs(x[t, :whole]) + 2.0**-140
        assert (np.abs(back[:whole].astype(np.float64) - x[t, :whole]) <= half + slack).all()
        assert not back[whole:].any()


@given(inputs=strategies.matmul_q8_inputs())
def test_the_product_is_the_plain_loop_to_the_bit(inputs: Any) -> None:
    """Exact integers within a group, then float32 in order, also with ragged groups."""
    x, x_scales, w, w_scales, group_size = inputs
    found = ops.matmul_q8(x, x_scales, w, w_scales, group_size)
    C = x.shape[1]
    for t in range(len(x)):
        for i in range(len(w)):
            total = F32(0)
            for j in range(0, C - group_size + 1, group_size):
                pairs = zip(x[t, j : j + group_size], w[i, j : j + group_size], strict=True)
                whole = F32(sum(int(a) * int(b) for a, b in pairs))
                total += whole * w_scales[(i * C + j) // group_size] * x_scales[t, j // group_size]
            assert found[t, i] == total


@writes_files
@given(
    model=strategies.models(beyond=False),
    wanted=st.sampled_from([64, 32, 6, 3, 1]),
    like=st.booleans(),
)
def test_a_written_file_is_read_back(tmp_path: Path, model: Any, wanted: int, like: bool) -> None:
    """Values and scales of every matrix are those of the exporter's rounding."""
    config = model.config
    size = fitting_group_size(wanted, config.dim, config.hidden_dim, like)
    tensors = {k: v for k, v in vars(model.weights).items() if v is not None}
    path = tmp_path / "q.bin"
    save_parameters(path, config, tensors, 2, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        loaded = pyllm2.load(path, backend="numpy").model
    for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3"):
        for layer in range(config.n_layers):
            values, scales = quantize_weights(tensors[name][layer].ravel(), size)
            matrix = getattr(loaded.weights, name)[layer]
            np.testing.assert_array_equal(matrix.values.ravel(), values)
            np.testing.assert_array_equal(matrix.scales, scales)
    _, expanded, _ = load_float32(path)
    np.testing.assert_array_equal(expanded["token_embedding"], loaded.weights.token_embedding)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), st.booleans())
@example(64, 64, 172, False)
def test_the_group_size_is_the_first_half_that_fits(
    wanted: int, dim: int, hidden_dim: int, like_original: bool
) -> None:
    """The largest of wanted, wanted // 2, wanted // 4, … that divides the widths."""
    size = fitting_group_size(wanted, dim, hidden_dim, like_original)

    def fits(n: int) -> bool:
        return dim % n == 0 and (like_original or hidden_dim % n == 0)

    halves = [wanted >> k for k in range(wanted.bit_length())]
    assert size == next(n for n in halves if fits(n))


def test_the_group_size_divides_both_widths_unless_like_the_original(golden: Path) -> None:
    """The original's rule considers dim only, ours both widths."""
    rule = json.loads((golden / "export.json").read_text())["group_size_rule"]
    for dim, requested, used in rule["rows"]:
        assert fitting_group_size(requested, dim, 172, like_original=True) == used
        ours = fitting_group_size(requested, dim, 172)
        assert dim % ours == 172 % ours == 0


@pytest.mark.parametrize(
    ("to", "size", "like", "name"),
    [
        ("v1", 64, False, "stories260K_v1.bin"),
        ("v2", 64, True, "stories260K_q80_g64.bin"),
        ("v2", 4, True, "stories260K_q80_g4.bin"),
        ("v2", 64, False, "stories260K_q80_g4.bin"),
    ],
)
def test_exports_equal_the_originals_byte_for_byte(
    golden: Path, tmp_path: Path, to: str, size: int, like: bool, name: str
) -> None:
    """v1 and v2 files of stories260K."""
    out = tmp_path / "out.bin"
    export(golden / "stories260K.bin", out, to, size, like)
    digests = [hashlib.sha256(p.read_bytes()).hexdigest() for p in (out, golden / name)]
    assert digests[0] == digests[1]


def test_float32_formats_carry_the_same_numbers(golden: Path, tmp_path: Path) -> None:
    """v0 to v1 to v0 keeps every weight; only the unused RoPE tables are computed again."""
    export(golden / "stories260K_v1.bin", tmp_path / "v0.bin", "v0")
    ours, theirs = (tmp_path / "v0.bin").read_bytes(), (golden / "stories260K.bin").read_bytes()
    tables = 2 * 512 * 4 * 4
    assert len(ours) == len(theirs)
    assert ours[:-tables] == theirs[:-tables]


@pytest.mark.parametrize("name", ["story24", "unicode", "long"])
@pytest.mark.parametrize("group_size", [4, 64])
def test_numpy_is_near_the_recorded_int8_logits(golden: Path, name: str, group_size: int) -> None:
    """The tolerance is measured: one ulp in an activation can change a rounding to int8.

    Without such a change logits differ as float32 logits do; with one, by up to 0.85 in the
    original's own fast build. The best token is the recorded one at every position here.
    """
    cases = json.loads((golden / "logits.json").read_text())
    case = next(c for c in cases if c["name"] == f"q80_g{group_size}_{name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        model = pyllm2.load(golden / case["model"], backend="numpy")
    recorded = np.load(golden / case["file"])
    ours = model.logits(case["tokens"])[case["positions"]]
    assert np.abs(ours - recorded).max() <= 0.85
    assert (ours.argmax(axis=1) == recorded.argmax(axis=1)).mean() == 1


def test_quantizing_reports_the_loss_of_accuracy(
    golden: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """One row per tensor; perplexity, divergence and the first changed token on a text."""
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time, there was a little girl named Lily.")
    flags = ["--report", "--text", str(text), "--tokenizer", str(golden / "tok512.bin")]
    out = str(tmp_path / "q.bin")
    assert main(["quantize", str(golden / "stories260K.bin"), out, *flags]) == 0
    printed = capsysbinary.readouterr().out.decode()
    for name in ("token_embedding", "wq", "w2", "perplexity", "divergence", "first change"):
        assert name in printed
    model, quantised = (
        pyllm2.load(p, golden / "tok512.bin", backend="numpy")
        for p in (golden / "stories260K.bin", out)
    )
    found = compare_on_text(model, quantised, model.tokenizer.encode(text.read_text()))
    assert 0 <= found.divergence < 0.01
    assert abs(found.perplexity_q8 / found.perplexity - 1) < 0.05


def test_a_file_is_not_exported_over_itself(
    tmp_path: Path, golden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failure would destroy the input."""
    path = tmp_path / "m.bin"
    path.write_bytes((golden / "stories260K.bin").read_bytes())
    assert main(["export", str(path), str(path), "--format", "v1"]) == 2
    assert "would overwrite the input" in capsys.readouterr().err
    assert path.read_bytes() == (golden / "stories260K.bin").read_bytes()


STRICT = [b for b in BACKENDS if b.endswith("-strict")]


@pytest.mark.parametrize("backend", STRICT)
@pytest.mark.parametrize("name", ["story24", "unicode", "long"])
@pytest.mark.parametrize("group_size", [4, 64])
def test_strict_logits_are_the_recorded_bits(
    golden: Path, backend: str, name: str, group_size: int
) -> None:
    """Both strict backends give every bit of every recorded logit, from a whole prompt."""
    ops_of(backend)
    cases = json.loads((golden / "logits.json").read_text())
    case = next(c for c in cases if c["name"] == f"q80_g{group_size}_{name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        model = pyllm2.load(golden / case["model"], backend=backend)
    ours = model.logits(case["tokens"])[case["positions"]]
    np.testing.assert_array_equal(ours, np.load(golden / case["file"]))


@st.composite
def quantized_models(draw: Any) -> Llama2:
    """A random int8 model whose group size divides dim, but not always hidden_dim."""
    model = draw(strategies.models(beyond=False))
    config = model.config
    size = draw(st.sampled_from([n for n in range(1, config.dim + 1) if config.dim % n == 0]))

    def quantized(stack: Any) -> Quantized:
        pairs = [quantize_weights(matrix.ravel(), size) for matrix in stack]
        values = np.stack([v.reshape(stack.shape[1:]) for v, _ in pairs])
        return Quantized(values, np.stack([s for _, s in pairs]), size)

    names = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
    matrices: dict[str, Any] = {n: quantized(getattr(model.weights, n)) for n in names}
    embedding = quantized(model.weights.token_embedding[None])[0]
    expanded = ops.dequantize(embedding.values, embedding.scales, size)
    weights = replace(model.weights, **matrices, token_embedding=expanded, classifier=embedding)
    return Llama2(config, weights, backends.Engine(ops))


@few()
@given(model=quantized_models(), data=st.data())
def test_an_int8_model_quantises_the_rows_before_each_product(
    model: Llama2, data: st.DataObject
) -> None:
    """The bits of a float32 model whose products do so: every matrix, none of the other ops."""
    int8: dict[bytes, Quantized] = {}

    def expanded(matrix: Any) -> Any:
        if matrix.values.ndim == 3:
            return np.stack([expanded(matrix[layer]) for layer in range(len(matrix.values))])
        size = matrix.group_size
        flat = ops.dequantize(matrix.values.ravel(), matrix.scales.ravel(), size)
        dense = flat.reshape(matrix.values.shape)
        int8[dense.tobytes()] = matrix
        return dense

    def matmul(x: Any, w: Any, b: Any) -> Any:
        matrix = int8[w.tobytes()]
        values, scales = ops.quantize(x, matrix.group_size)
        return ops.matmul_q8(values, scales, matrix.values, matrix.scales, matrix.group_size)

    matrices = {
        name: expanded(stack)
        for name, stack in vars(model.weights).items()
        if isinstance(stack, Quantized)
    }
    weights = replace(model.weights, **matrices)
    float32 = Llama2(
        model.config, weights, backends.Engine(SimpleNamespace(**vars(ops) | {"matmul": matmul}))
    )
    tokens = data.draw(strategies.token_ids(model.config))
    logits = [m.forward(tokens, 0, m.new_cache(len(tokens))) for m in (model, float32)]
    np.testing.assert_array_equal(*logits)


@pytest.mark.skipif(len(STRICT) < 2, reason="two strict backends are compared")
@few()
@given(model=quantized_models(), data=st.data())
def test_two_strict_engines_agree_to_the_last_bit(model: Llama2, data: st.DataObject) -> None:
    """C and Numba give the same logits for any int8 model, also with ragged groups."""
    tokens = data.draw(strategies.token_ids(model.config))
    logits = []
    for backend in STRICT:
        engine = Llama2(model.config, model.weights, engine_of(backend))
        logits.append(engine.forward(tokens, 0, engine.new_cache(len(tokens))))
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b in ("c", "c-strict", "numba")])
@few()
@given(model=quantized_models(), data=st.data())
def test_a_whole_forward_of_an_int8_model_is_near_its_composition(
    backend: str, model: Llama2, data: st.DataObject
) -> None:
    """Equal bits if strict; otherwise a changed rounding may shift logits by part of their size."""
    engine = Llama2(model.config, model.weights, engine_of(backend))
    tokens = data.draw(strategies.token_ids(model.config, most=5))
    caches = [engine.new_cache(len(tokens)) for _ in range(2)]
    whole = engine.forward(tokens, 0, caches[0])
    composed = engine.with_ops(engine.ops).forward(tokens, 0, caches[1])
    if backend.endswith("-strict"):
        np.testing.assert_array_equal(whole, composed)
    else:
        size = np.abs(composed).max()
        assert np.median(np.abs(whole - composed)) <= 0.05 * size + 1e-6


@pytest.mark.parametrize("backend", STRICT)
def test_run_prints_what_the_original_int8_engine_printed(
    golden: Path, backend: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Every recorded generation of runq.c, byte for byte."""
    ops_of(backend)
    cases = json.loads((golden / "generations.json").read_text())
    cases = [case for case in cases if case["engine"] == "runq"]
    assert len(cases) == 4
    for case in cases:
        argv = ["run", str(golden / case["model"]), "-z", str(golden / case["tokenizer"])]
        for flag, key in (("-t", "temperature"), ("-p", "topp"), ("-s", "seed"), ("-n", "steps")):
            argv += [flag, case[key]] if case[key] is not None else []
        if case["prompt_hex"] is not None:
            argv += ["-i", bytes.fromhex(case["prompt_hex"]).decode()]
        assert main([*argv, "--backend", backend]) == case["exit_code"]
        assert capsysbinary.readouterr().out.hex() == case["stdout_hex"], case["name"]


def test_a_missing_input_is_refused_even_if_the_output_exists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, and the existing output is unchanged."""
    (tmp_path / "out.bin").write_bytes(b"old")
    argv = ["export", str(tmp_path / "no.bin"), str(tmp_path / "out.bin"), "--format", "v1"]
    assert main([*argv, "--force"]) == 1
    assert capsys.readouterr().err.endswith("no.bin: no such file or directory\n")
    assert (tmp_path / "out.bin").read_bytes() == b"old"
