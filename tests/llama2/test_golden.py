"""Recorded results of the original: ids, coins, choices, logits, caches."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyllm2
from pyllm2.inference.original import OriginalSampler, piece_bytes, shown
from pyllm2.inference.sampling import probabilities
from pyllm2.inference.xorshift import XorShift
from pyllm2.llama2 import ops
from pyllm2.testing import assert_close, bounds, model_bound
from pyllm2.testing.llama2.table import OPS
from pyllm2.tokenizers import Tokenizer, load_tokenizer
from tests.support.tested import BACKENDS, ops_of

FP32_LOGITS = ["fp32_story24", "fp32_unicode", "fp32_long"]


def read(golden: Path, name: str) -> Any:
    return json.loads((golden / name).read_text())


def tokenizer(golden: Path, name: str, vocab_size: int | None = None) -> Tokenizer:
    return load_tokenizer(golden / name, vocab_size)


@pytest.mark.parametrize("size", ["512", "32000"])
def test_encode(golden: Path, size: str) -> None:
    """78 strings in each vocabulary give the recorded ids."""
    name = "tok512.bin" if size == "512" else "tokenizer.bin"
    t = tokenizer(golden, name, int(size))
    cases = read(golden, f"encode_tok{size}.json")
    assert len(cases) == 78
    for case in cases:
        data = bytes.fromhex(case["text_hex"])
        assert t.encode(data, bool(case["bos"]), bool(case["eos"])) == case["ids"], data


@pytest.mark.parametrize("part", ["tok512", "tok32000", "odd"])
def test_decode_and_print_filter(golden: Path, part: str) -> None:
    """Each (previous id, id) gives the recorded piece and the recorded visible bytes."""
    files = {"tok512": "tok512.bin", "tok32000": "tokenizer.bin", "odd": "odd_pieces.bin"}
    t = tokenizer(golden, files[part])
    if part == "odd":
        rows = read(golden, "decode_odd_pieces.json")["cases"]
    else:
        rows = read(golden, "decode.json")[part]
    assert len(rows) > 50
    for previous, i, piece, visible in rows:
        found = piece_bytes(t, previous, i)
        assert (found.hex(), shown(found).hex()) == (piece, visible), (previous, i)


def test_rng(golden: Path) -> None:
    """Words, coins and final state of every recorded seed."""
    for case in read(golden, "rng.json"):
        words, coins = XorShift(int(case["seed"])), XorShift(int(case["seed"]))
        assert [words.next_u32() for _ in case["u32"]] == case["u32"]
        assert [coins.next_float() for _ in case["f32"]] == case["f32"]
        assert f"{words.state:016x}" == case["state_after_hex"]


def from_bits(hex_words: list[str]) -> np.ndarray:
    return np.array([int(word, 16) for word in hex_words], dtype=np.uint32).view(np.float32)


def test_sampler(golden: Path) -> None:
    """Every recorded choice and final state; probabilities within 2⁻²⁴."""
    cases = read(golden, "sampler.json")
    assert len(cases) == 34
    for case in cases:
        logits = from_bits(case["logits_bits"])
        sampler = OriginalSampler(case["temperature"], case["topp"], int(case["seed"]))
        choices = [sampler(logits) for _ in range(case["draws"])]
        assert choices == case["choices"], case["name"]
        assert f"{sampler.rng.state:016x}" == case["state_after_hex"]
        if "probs_bits" in case:
            p = probabilities(logits, case["temperature"])
            assert np.abs(p - from_bits(case["probs_bits"])).max() <= 2.0**-24, case["name"]


@functools.cache
def exact_logits(golden: Path, name: str) -> tuple[Any, Any, Any]:
    """A case of logits.json, its logits in float64, and their bound: once for all backends."""
    case = next(c for c in read(golden, "logits.json") if c["name"] == name)
    model = pyllm2.load(golden / case["model"], backend="numpy").model
    value, error = model_bound(model, np.array(case["tokens"]))
    return case, value[case["positions"]], error[case["positions"]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FP32_LOGITS)
def test_logits(golden: Path, name: str, backend: str) -> None:
    """The recorded logits and ours both lie within the propagated bound of float64."""
    ops_of(backend)
    case, value, error = exact_logits(golden, name)
    model = pyllm2.load(golden / case["model"], backend=backend)
    recorded = np.load(golden / case["file"])
    ours = model.logits(case["tokens"])[case["positions"]]
    assert (np.abs(recorded - value) <= error).all()
    assert (np.abs(ours - value) <= error).all()
    if backend.endswith("-strict"):
        np.testing.assert_array_equal(ours, recorded)
    assert ours.argmax(axis=-1).tolist() == [case["argmax"][i] for i in range(len(ours))]


@pytest.mark.parametrize("name", ["rmsnorm", "softmax", "matmul", "swiglu"])
def test_single_ops(golden: Path, name: str) -> None:
    """The recorded result of each single op, and ours, lie within the op's bound."""
    arguments = {
        "rmsnorm": ("x", "w"),
        "softmax": ("x",),
        "matmul": ("x", "w"),
        "swiglu": ("gate", "up"),
    }[name]
    recorded = np.load(golden / "ops.npz")
    n = 0
    while f"{name}{n}_y" in recorded:
        inputs = [recorded[f"{name}{n}_{a}"] for a in arguments]
        y = recorded[f"{name}{n}_y"].reshape(1, -1)
        if name == "matmul":
            inputs = [inputs[0][None], inputs[1].reshape(y.shape[1], -1)]
        elif name == "rmsnorm":
            inputs = [inputs[0][None], inputs[1]]
        else:
            inputs = [a[None] for a in inputs]
        bounded = OPS[name].bound(*inputs)
        assert_close(y, bounded, "recorded")
        assert_close(getattr(ops, name)(*inputs), bounded, "ours")
        n += 1
    assert n >= 3


def test_rope_tables(golden: Path) -> None:
    """Within 2⁻²³ of the recorded ones, also where the angle's rounding matters most."""
    recorded = np.load(golden / "libm.npz")
    positions = recorded["rope_positions"]
    sizes = [int(key.removeprefix("rope_cos_hs")) for key in recorded if "rope_cos_hs" in key]
    assert sizes
    for hs in sizes:
        cos, sin = ops.rope_tables(int(positions.max()) + 1, hs)
        for found, name in ((cos, "cos"), (sin, "sin")):
            expected = recorded[f"rope_{name}_hs{hs}"]
            assert np.abs(found[positions] - expected).max() <= 2 * bounds.U, (hs, name)


def test_caches_after_24_tokens(golden: Path) -> None:
    """Keys (rotated) and values of every layer and position, close to the recorded ones."""
    state = np.load(golden / "state_fp32_story24.npz")
    case = next(c for c in read(golden, "logits.json") if c["name"] == "fp32_story24")
    model = pyllm2.load(golden / case["model"])
    session = model.start(24)
    session.feed(case["tokens"])
    L, _, KV = state["key_cache"].shape
    for ours, recorded in (
        (session.cache.keys, state["key_cache"]),
        (session.cache.values, state["value_cache"]),
    ):
        difference = np.abs(ours.reshape(L, 24, KV) - recorded[:, :24])
        assert difference.max() <= 64 * bounds.U * np.abs(recorded).max()


def test_v1_is_the_same_model(golden: Path) -> None:
    """The v1 export of a v0 file gives the same bits."""
    tokens = [1, 403, 407, 261]
    v0 = pyllm2.load(golden / "stories260K.bin").logits(tokens)
    v1 = pyllm2.load(golden / "stories260K_v1.bin").logits(tokens)
    np.testing.assert_array_equal(v0, v1)
