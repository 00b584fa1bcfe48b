"""GGUF's number formats: the bits of a second definition, and of llama.cpp as recorded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pyllm2.formats.gguf_blocks import BY_NAME, CHUNK, TYPES, UNSUPPORTED
from tests.formats import gguf_definition
from tests.support.golden import shared_folder
from tests.support.profiles import few

SHARED = shared_folder()
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-1e4, max_value=1e4)


def bits(x: np.ndarray) -> np.ndarray:
    """The bits, with one NaN for all."""
    return np.where(np.isnan(x), np.float32(np.nan), x).astype("<f4").view("<u4")


def expanded(name: str, raw: np.ndarray) -> np.ndarray:
    kind = BY_NAME[name]
    out = np.empty(raw.size // kind.nbytes * kind.numbers, np.float32)
    kind.expand(raw.reshape(-1), out)
    return out


@pytest.mark.parametrize("name", gguf_definition.BLOCKS)
@few(5)
@given(data=st.data())
def test_blocks_have_the_bits_of_the_second_definition(name: str, data: st.DataObject) -> None:
    """Any bytes: scales may be subnormal, infinite or NaN."""
    kind = BY_NAME[name]
    raw = data.draw(arrays(np.uint8, (2, kind.nbytes)))
    block, one = raw.tolist(), gguf_definition.BLOCKS[name]
    with np.errstate(all="ignore"):
        expected = [one(b, i) for b in block for i in range(kind.numbers)]
    assert (bits(expanded(name, raw)) == bits(np.array(expected, np.float32))).all()


@pytest.mark.skipif(SHARED is None, reason="no recordings")
@pytest.mark.parametrize("source", ["random", "quantized"])
@pytest.mark.parametrize("name", [name for name in BY_NAME if name != "F32"])
def test_blocks_have_the_bits_of_llama_cpp(name: str, source: str) -> None:
    """Blocks of random bits, and blocks that its quantiser wrote."""
    assert SHARED is not None
    with np.load(SHARED / "golden" / "real" / "gguf" / "blocks.npz") as blocks:
        if f"{name}.{source}.raw" not in blocks:
            pytest.skip("not recorded")
        raw, expected = blocks[f"{name}.{source}.raw"], blocks[f"{name}.{source}.f32"]
        assert (bits(expanded(name, raw)) == bits(expected)).all()
        quantize = BY_NAME[name].quantize
        if source == "quantized" and quantize is not None:
            assert (quantize(blocks[f"{name}.quantized.x"]) == raw).all()


@pytest.mark.parametrize("name", [t.name for t in TYPES.values() if t.quantize])
@given(data=st.data())
def test_a_written_number_is_off_by_half_a_step(name: str, data: st.DataObject) -> None:
    """x written and read: within half the distance of two neighbours, and f16's rounding of it."""
    kind = BY_NAME[name]
    x = data.draw(arrays(np.float32, (2, kind.numbers), elements=FLOATS))
    assert kind.quantize is not None
    written = kind.quantize(x)
    assert written.shape == (2, kind.nbytes)
    error = np.abs(expanded(name, written).reshape(x.shape).astype(np.float64) - x)
    largest = np.abs(x).max(axis=1, keepdims=True).astype(np.float64)
    # Q4_0 has no +8: an x of the other sign and the same size loses a whole step, 1/8.
    step = {"F32": 0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 254, "Q4_0": 1 / 8}[name]
    f16_of_scale = largest * 2**-11 + 127 * 2.0**-25 if kind.numbers > 1 else 2.0**-25
    assert (error <= step * largest * (1 + 1e-6) + (step > 0) * f16_of_scale).all()


def test_bf16_is_rounded_to_even_and_nan_stays() -> None:
    x = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F800001, 0x7F7FFFFF], np.uint32)
    kind = BY_NAME["BF16"]
    assert kind.quantize is not None
    written = kind.quantize(x.view(np.float32).reshape(-1, 1)).view("<u2").ravel()
    assert [hex(n) for n in written] == ["0x3f80", "0x3f82", "0x3f81", "0x7fc0", "0x7f80"]


def test_pieces_join() -> None:
    """More blocks than are expanded at once."""
    raw = np.arange(2 * (CHUNK // 32 + 3) * 17, dtype=np.uint32).astype(np.uint8).reshape(-1, 34)
    raw[:, 1] = 0x30  # finite scales
    assert (expanded("Q8_0", raw) == BY_NAME["Q8_0"].dequantize(raw).ravel()).all()


def test_no_type_is_both_read_and_refused() -> None:
    assert not set(TYPES) & set(UNSUPPORTED)
