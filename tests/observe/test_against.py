"""`diff --against`: a dump is inside its bound; what is wrong with a layer is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from pyllm2.errors import ConfigError, FormatError, PyLLM2Error, UsageError
from pyllm2.formats.safetensors_file import write_safetensors
from pyllm2.inference.language_model import LanguageModel
from pyllm2.llama2.rotary_order import half_split
from pyllm2.observe import against as module
from pyllm2.observe.against import LAYOUTS, Given, against
from pyllm2.observe.debug_state import against_debug_state
from pyllm2.observe.dump import UNITS, read_dump
from pyllm2.observe.report import Report
from pyllm2.observe.trace import family_of, trace
from tests.observe.models import fixed, language_models
from tests.support.command import in_process
from tests.support.golden import shared_folder
from tests.support.profiles import few

IDS = [1, 5, 7, 5, 2, 9, 11]


def dumped(model: LanguageModel, ids: list[int] = IDS) -> dict[str, Any]:
    """Hidden states as transformers has them, of a trace: the last one after the final norm."""
    records = trace(model, ids, backend="numpy")
    gpt2 = family_of(model.model) == "gpt2"
    L = max(r.layer for r in records if r.layer is not None) + 1
    streams = [records.where(layer=None)[0].output]
    streams += [records.where(layer=n)[-1].output for n in range(L)]
    norm = records["lnfw" if gpt2 else "final_norm", "layernorm_forward" if gpt2 else "rmsnorm"]
    rows = [a.reshape(1, len(ids), -1) for a in [*streams[:-1], norm.output]]
    named = {f"hidden_{n}": a for n, a in enumerate(rows)}
    return {
        "input_ids": np.array([ids]),
        "logits": records[-1].output.reshape((*rows[0].shape[:2], -1)),
        **named,
    }


def swap(a: Any, b: Any) -> None:
    a[...], b[...] = b.copy(), a.copy()


@few(6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(language_models(), st.sampled_from(["npz", "safetensors"]))
def test_a_dump_of_the_same_weights_is_inside(tmp_path: Path, drawn: Any, kind: str) -> None:
    model, ids = drawn
    path = tmp_path / f"dump.{kind}"
    arrays = dumped(model, ids)
    if kind == "npz":
        np.savez(path, **arrays)
    else:
        write_safetensors(path, arrays, {})
    report = against(model, path)
    assert report.passed, str(report)


@pytest.mark.parametrize("family", ["llama2", "int8", "gpt2"])
def test_the_layout_is_found_out(family: str, tmp_path: Path) -> None:
    """Every layout of a list of hidden states, by the numbers."""
    model = fixed(family)
    arrays = dumped(model)
    records = trace(model, IDS, backend="numpy")
    last = records.where(layer=1)[-1].output.reshape(len(IDS), -1)
    streams = {n: arrays[f"hidden_{n}"][0] for n in range(2)} | {2: last, -1: arrays["hidden_2"][0]}
    for name, make in (
        LAYOUTS.items() if family == "llama2" else [("layers+norm", LAYOUTS["layers+norm"])]
    ):
        path = tmp_path / f"{name}.npz"
        np.savez(path, ids=np.array(IDS), h=np.stack([streams[n] for n in make(2)]))
        report = against(model, path)
        assert report.passed, str(report)
        assert f"layout {name}, " in str(report)
        assert against(model, path, given=Given(layout=name)).passed


def named(report: Report) -> list[tuple[tuple[str, ...], str]]:
    return [(f.ops, f.where) for f in report.faults]


def square() -> LanguageModel:
    """A Llama-2 whose queries and keys have as many heads."""
    from dataclasses import replace

    model = fixed("llama2")
    decoder = model.model
    config = replace(decoder.config, n_kv_heads=decoder.config.n_heads)
    from pyllm2.llama2.model import Llama2
    from pyllm2.testing.llama2.strategies import random_weights

    weights = random_weights(config, shared_classifier=True, seed=1)
    return LanguageModel(Llama2(config, weights, decoder.engine), None, "numpy")


@pytest.mark.parametrize("layer", [0, 1])
def test_queries_and_keys_exchanged_are_named(layer: int, tmp_path: Path) -> None:
    model = square()
    np.savez(tmp_path / "d.npz", **dumped(model))
    np.savez(tmp_path / "l.npz", **{k: v for k, v in dumped(model).items() if "hidden" not in k})
    w = model.model.weights
    swap(w.wq[layer], w.wk[layer])
    for name in ("d.npz", "l.npz"):  # by the layer; by the logits alone
        report = against(model, tmp_path / name)
        assert named(report) == [(("matmul",), f"layer {layer} wq and wk matmul")], str(report)
        assert "wq and wk exchanged" in str(report)


def test_queries_and_keys_exchanged_are_named_in_gpt2(tmp_path: Path) -> None:
    model = fixed("gpt2")
    np.savez(tmp_path / "d.npz", **dumped(model))
    for name in ("qkvw", "qkvb"):
        q, k, _ = np.split(model.model.params[name][1], 3)
        swap(q, k)
    report = against(model, tmp_path / "d.npz")
    assert named(report) == [(("matmul_forward",), "layer 1 qkvw matmul_forward")]


def test_unpermuted_rope_is_named_in_every_layer(tmp_path: Path) -> None:
    model = fixed("llama2")
    np.savez(tmp_path / "d.npz", **dumped(model))
    np.savez(tmp_path / "l.npz", **{k: v for k, v in dumped(model).items() if "hidden" not in k})
    w, config = model.model.weights, model.config
    for layer in range(2):
        w.wq[layer] = half_split(w.wq[layer], config.n_heads)
        w.wk[layer] = half_split(w.wk[layer], config.n_kv_heads)
    report = against(model, tmp_path / "d.npz")
    assert named(report) == [(("rope",), f"layer {n} wq and wk rope") for n in range(2)]
    assert "RoPE unpermuted" in str(report)
    assert named(against(model, tmp_path / "l.npz")) == [(("rope",), "every layer wq and wk rope")]


@pytest.mark.parametrize("order", ["interleaved", "half-split"])
def test_results_inside_a_layer_name_the_op(order: str, tmp_path: Path) -> None:
    """Names as hooks of transformers have them; the order of RoPE is found out."""
    model = fixed("llama2")
    records = trace(model, IDS, backend="numpy")
    arrays = dumped(model)
    for name, heads in (("q", 4), ("k", 2)):
        rows = records["layer 1", f"w{name}"].output
        rows = half_split(rows.T, heads).T if order == "half-split" else rows
        arrays[f"model.layers.1.self_attn.{name}_proj"] = rows[None]
    arrays["model.layers.1.mlp.gate_proj"] = records["layer 1", "w1"].output[None]
    np.savez(tmp_path / "d.npz", **arrays)
    report = against(model, tmp_path / "d.npz")
    assert report.passed, str(report)
    assert f"in {order} order" in str(report)
    model.model.weights.w1[1, 3, 2] += np.float32(0.5)  # no usual cause
    report = against(model, tmp_path / "d.npz")
    assert named(report) == [(("matmul",), "layer 1 w1 matmul")], str(report)


def test_bounds_grow_with_the_precision_of_the_dump(tmp_path: Path) -> None:
    """Numbers in float16 are recognised; told that they are float32's, they are outside."""
    model = fixed("llama2")
    arrays = dumped(model)
    halves = {k: a.astype(np.float16) if a.dtype.kind == "f" else a for k, a in arrays.items()}
    np.savez(tmp_path / "d.npz", **halves)
    report = against(model, tmp_path / "d.npz")
    assert report.passed
    assert "computed in float16" in str(report)
    assert not against(model, tmp_path / "d.npz", given=Given(precision="float32")).passed


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros(3)}, "expected hidden states"),
        ({"ids": np.arange(3), "h": np.zeros((9, 3, 16))}, "9 arrays, the model has 2 layers"),
        ({"ids": np.arange(4), "h": np.zeros((3, 3, 16))}, "expected .4, 16."),
        ({"ids": np.zeros((2, 3), int), "h": np.zeros((3, 3, 16))}, "expected .T. of one sequence"),
        ({"ids": np.arange(3), "layers.7.q_proj": np.zeros((3, 16))}, "the model has 2 layers"),
        ({"ids": np.arange(3), "layers.1.q_proj": np.zeros((3, 17))}, r"expected \(3, 16\)"),
        ({"h": np.zeros((3, 3, 16))}, "has no ids: give them"),
        ({"ids": np.array([1, 99]), "h": np.zeros((3, 2, 16))}, "token id 99"),
    ],
)
def test_what_is_no_dump_of_the_model_is_refused(
    arrays: dict[str, Any], words: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(PyLLM2Error, match=words):
        against(fixed("llama2"), tmp_path / "d.npz")


def test_ids_are_given_once(tmp_path: Path) -> None:
    model = fixed("llama2")
    arrays = dumped(model)
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(UsageError, match="has ids of its own"):
        against(model, tmp_path / "d.npz", [1, 2])
    del arrays["input_ids"]
    np.savez(tmp_path / "d.npz", **arrays)
    assert against(model, tmp_path / "d.npz", IDS).passed


def test_the_command_compares_with_a_dump(tmp_path: Path) -> None:
    """Flags that do not go together are refused."""
    np.savez(tmp_path / "d.npz", input_ids=np.arange(3), logits=np.full((3, 1024), 0.1))
    outcome = in_process(["diff", "--against", "d.npz"], tmp_path)
    assert outcome.code == 1
    assert b"OUTSIDE: " in outcome.out
    for words, expected in (
        (["--layout", "streams"], "--layout: only with --against"),
        (["--against", "d.npz", "--backends", "numpy"], "--backends: not with --against"),
        (["--against", "nosuch.npz"], "nosuch.npz: no such file"),
    ):
        outcome = in_process(["diff", *words], tmp_path)
        assert expected in outcome.err.decode(), outcome.err
        assert outcome.code in (1, 2)


def test_the_flags_of_the_command_are_those_of_the_module() -> None:
    from pyllm2.cli import diff

    assert list(diff.LAYOUTS) == list(LAYOUTS)
    assert list(diff.UNITS) == list(UNITS)
    assert diff.ROPE_ORDERS == module.ROPE_ORDERS


# ---- recorded ones -----------------------------------------------------------------------------

needs_golden = pytest.mark.skipif(shared_folder() is None, reason="needs the golden files")


def golden(*parts: str) -> Path:
    folder = shared_folder()
    assert folder is not None
    return folder.joinpath("golden", *parts)


@needs_golden
@pytest.mark.parametrize("name", ["micro", "tiny"])
def test_a_debug_state_of_llm_c_is_inside(name: str, tmp_path: Path) -> None:
    """Recorded with PyTorch; with q and k of a layer exchanged that layer is named."""
    import pyllm2

    model = pyllm2.load(golden("llmc", "models", name, "model.bin"), backend="numpy")
    path = golden("llmc", "models", name, "debug_state.bin")
    report = against_debug_state(model, path)
    assert report.passed, str(report)
    assert len(report.entries) > 20
    for weight in ("qkvw", "qkvb"):
        q, k, _ = np.split(model.model.params[weight][1], 3)
        swap(q, k)
    report = against_debug_state(model, path)
    assert named(report) == [(("matmul_forward",), "layer 1 qkvw matmul_forward")]


@needs_golden
def test_a_debug_state_belongs_to_a_gpt2() -> None:
    path = golden("llmc", "models", "micro", "debug_state.bin")
    with pytest.raises(ConfigError, match="belongs to a GPT-2"):
        against_debug_state(fixed("llama2"), path)
    with pytest.raises(FormatError):
        against_debug_state(fixed("gpt2"), path)


@needs_golden
def test_a_wrong_gradient_of_a_debug_state_is_named(tmp_path: Path) -> None:
    """One number of one gradient: the backward op that makes it."""
    import pyllm2

    model = pyllm2.load(golden("llmc", "models", "micro", "model.bin"), backend="numpy")
    data = bytearray(golden("llmc", "models", "micro", "debug_state.bin").read_bytes())
    data[-3] ^= 0x40  # lnfb, which comes last
    (tmp_path / "s.bin").write_bytes(data)
    (fault,) = against_debug_state(model, tmp_path / "s.bin").faults
    assert fault.where == "gradient of lnfb"
    assert "layernorm_backward" in fault.ops


def test_the_names_of_parts_are_read() -> None:
    """Names of hooks, and what is not a part."""
    from pyllm2.observe.dump import _LAYER, _part

    for name, expected in {
        "model.layers.3.self_attn.q_proj": (3, "wq"),
        "model.layers.0.mlp.up_proj": (0, "w3"),
        "model.layers.12.post_attention_layernorm": (12, "ffn_norm"),
        "blk.2.attn_k": (2, "wk"),
        "layer 1 keys": (1, "key"),
    }.items():
        found = _LAYER.search(name)
        assert found is not None
        assert (int(found[1]), _part("llama2", found[2])) == expected
    found = _LAYER.search("transformer.h.5.attn.c_proj")
    assert found is not None
    assert (int(found[1]), _part("gpt2", found[2])) == (5, "attprojw")
    assert _LAYER.search("hidden_3") is None


@needs_golden
@pytest.mark.parametrize("name", ["llama-mha-f32-sharded", "qwen3", "mistral-sliding", "gpt2-f32"])
def test_recorded_hidden_states_of_transformers_are_inside(name: str) -> None:
    """In float64, of a folder as `save_pretrained` writes it."""
    import pyllm2

    folder = golden("real", "hf", name)
    report = against(pyllm2.load(folder, backend="numpy"), folder / "expect.npz")
    assert report.passed, str(report)
    assert {"against", "layer"} == {entry.kind for entry in report.entries}


@needs_golden
def test_a_layer_of_a_real_folder_that_is_wrong_is_named() -> None:
    """Queries and keys exchanged; RoPE unpermuted."""
    import pyllm2

    folder = golden("real", "hf", "llama-mha-f32-sharded")
    for cause, words in (("exchanged", "matmul"), ("unpermuted", "rope")):
        model = pyllm2.load(folder, backend="numpy")
        w, NH = model.model.weights, model.config.n_heads
        if cause == "exchanged":
            swap(w.wq[1], w.wk[1])
        else:
            w.wq[1], w.wk[1] = half_split(w.wq[1], NH), half_split(w.wk[1], NH)
        report = against(model, folder / "expect.npz")
        assert named(report) == [((words,), f"layer 1 wq and wk {words}")], str(report)
        assert cause in report.faults[0].text


@needs_golden
def test_a_recorded_dump_with_logits_alone() -> None:
    """transformers in float64, of a GGUF file's weights."""
    import pyllm2

    path = golden("real", "gguf", "llama-f32-v2.gguf")
    model = pyllm2.load(path, backend="numpy")
    assert against(model, path.with_suffix(".expect.npz")).passed
    dump = read_dump(path.with_suffix(".expect.npz"), "llama2")
    assert set(dump.logits) == {"logits_f64", "logits_llamacpp"}
