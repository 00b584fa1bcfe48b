"""The Numba backend on int8 weights: equal bits where arithmetic is exact, bounds elsewhere."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from pyllm2 import backends
from pyllm2.llama2 import ops as specification
from pyllm2.llama2.model import Llama2
from pyllm2.parameters import Quantized
from pyllm2.testing.llama2 import strategies
from pyllm2.testing.strategies import arrays, sizes
from tests.support.profiles import few

pytestmark = pytest.mark.skipif(
    backends.why_not("numba") is not None, reason=f"backend 'numba' {backends.why_not('numba')}"
)

BUILDS = ("numba", "numba-strict")
GROUP_SIZES = st.one_of(st.integers(1, 9), st.sampled_from([16, 32, 33, 64, 100, 128]))
HALF_ULP = 2.0**-24

Products = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]


@st.composite
def products(draw: Any) -> Products:
    """Arguments of `matmul_q8`; the group size may divide the width, straddle rows or exceed it."""
    group_size = draw(GROUP_SIZES)
    whole = draw(st.integers(0, 5)) * group_size
    C = max(1, whole + draw(st.sampled_from([0, 0, 1, group_size // 2])))
    T, OC = draw(sizes(3)), draw(sizes(20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x, w = (rng.integers(-127, 128, (n, C), np.int8) for n in (T, OC))
    x_scales = rng.lognormal(-4, 2, (T, C // group_size)).astype(np.float32)
    w_scales = rng.lognormal(-4, 2, OC * C // group_size).astype(np.float32)
    return x, x_scales, w, w_scales, group_size


def in_groups(a: np.ndarray, group_size: int) -> Quantized:
    """A stack of int8 matrices with other bytes between the layers, as in a file."""
    L, rows, cols = a.shape
    values, scales = specification.quantize(a.reshape(L, rows * cols), group_size)
    room = np.full((L, rows * cols + 4), 99, np.int8)
    room[:, :-4] = values
    apart = (room.strides[0], cols, 1)
    return Quantized(np.lib.stride_tricks.as_strided(room, a.shape, apart), scales, group_size)


@st.composite
def models(draw: Any) -> Llama2:
    """A random model with its matrices in int8, over the Numba ops."""
    model, group_size = (
        draw(strategies.models(backends.engine("numba"), beyond=False)),
        draw(GROUP_SIZES),
    )
    w = model.weights
    last = w.token_embedding if w.classifier is None else w.classifier
    names = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
    stacks = {name: in_groups(getattr(w, name), group_size) for name in names}
    stacks["classifier"] = in_groups(last[None], group_size)[0]
    return Llama2(model.config, dataclasses.replace(w, **stacks), model.engine)


# ---- the ops --------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BUILDS)
def test_the_quantiser_gives_the_originals_bits(backend: str, golden: Path) -> None:
    """Values, scales and their expansion, as recorded from runq.c."""
    ops, facts = backends.ops(backend), np.load(golden / "ops.npz")
    for i in range(5):
        x, group_size = facts[f"quant{i}_x"], int(facts[f"quant{i}_gs"])
        values, scales = ops.quantize(x[None], group_size)
        n = len(facts[f"quant{i}_q"])  # whole groups only
        np.testing.assert_array_equal(values[0, :n], facts[f"quant{i}_q"])
        np.testing.assert_array_equal(scales[0], facts[f"quant{i}_s"])
        expanded = ops.dequantize(values[0], scales[0], group_size)
        np.testing.assert_array_equal(expanded[:n], facts[f"quant{i}_deq"])


@pytest.mark.parametrize("backend", BUILDS)
@pytest.mark.parametrize("case", ["0", "1", "2", "3", "_ragged"])
def test_the_product_gives_the_originals_bits(backend: str, case: str, golden: Path) -> None:
    """Both builds, also where groups straddle rows."""
    ops, facts = backends.ops(backend), np.load(golden / "ops.npz")
    x, w, group_size = (facts[f"qmatmul{case}_{name}"] for name in ("x", "w", "gs"))
    x_values, x_scales = ops.quantize(x[None], int(group_size))
    w_values, w_scales = ops.quantize(w.reshape(1, -1), int(group_size))
    out = ops.matmul_q8(x_values, x_scales, w_values.reshape(w.shape), w_scales[0], int(group_size))
    np.testing.assert_array_equal(out[0], facts[f"qmatmul{case}_y"])


def quantisers() -> dict[str, Any]:
    from pyllm2.fast.llama2 import decode

    ops = {backend: backends.ops(backend).quantize for backend in BUILDS}
    return {**ops, "vectors": decode.prompt_quantize}


@pytest.mark.parametrize("which", [*BUILDS, "vectors"])
@given(
    x=st.tuples(sizes(4), sizes(150)).flatmap(arrays),
    group_size=GROUP_SIZES,
)
@example(np.float32([[127, 0.5, -0.5, 1.5, -2.5, 0.49999997, 126.5, 0]]), 8)  # ties, and one not
@example(np.float32([[2.0**-149, 0, -(2.0**-149)]]), 3)  # the scale is rounded to 0
@example(np.float32([[2.0**-143, 2.0**-149, -(2.0**-143)]]), 3)  # a quotient beyond 127
@example(np.float32([[1, np.nan, 2, 3]]), 2)  # NaN makes its group's scale NaN
def test_every_quantiser_gives_the_specifications_bits(
    which: str, x: np.ndarray, group_size: int
) -> None:
    """Scalar and vector kernels agree for any group size, also with ragged ends."""
    expected = specification.quantize(x, group_size)
    for found, wanted in zip(quantisers()[which](x, group_size), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == wanted.dtype


@pytest.mark.parametrize("backend", BUILDS)
@given(arguments=products())
def test_products_and_expansions_give_the_specifications_bits(
    backend: str, arguments: Products
) -> None:
    """Integer sums are exact and float sums keep their order, so every bit is equal."""
    ops, (_, _, w, w_scales, group_size) = backends.ops(backend), arguments
    np.testing.assert_array_equal(ops.matmul_q8(*arguments), specification.matmul_q8(*arguments))
    np.testing.assert_array_equal(
        ops.dequantize(w, w_scales, group_size), specification.dequantize(w, w_scales, group_size)
    )


# ---- vectors --------------------------------------------------------------------------------


@given(arguments=products())
def test_vector_products_are_the_specifications_but_for_the_order_of_sums(
    arguments: Products,
) -> None:
    """Each term is rounded thrice, each of 16 sums once a line of 64 bytes, and 4 times together.

    Other group sizes than 32 and multiples of 64 are summed in order: not a bit differs.
    """
    from pyllm2.fast.llama2 import decode

    x, x_scales, w, w_scales, group_size = arguments
    found = decode.prompt_matmul_q8(*arguments)
    value = specification.matmul_q8(*arguments)
    if group_size in (4, 8, 16, 32) or group_size % 64 == 0:
        x64, w64 = np.abs(x.astype(int)), np.abs(w.astype(int))
        sizes = specification.matmul_q8(x64, x_scales, w64, w_scales, group_size)  # Σ |terms|
        # Scales; the specification's sum; lines, pieces of one (32, 16, 8, 4), the sum across.
        roundings = 3 + x.shape[1] // group_size + x.shape[1] // 64 + 4 + 5
        assert (np.abs(found - value) <= 2 * roundings * HALF_ULP * sizes).all()
    else:
        np.testing.assert_array_equal(found, value)


def row_product(group: int, vnni: bool) -> Any:
    """Rows 0 … 3 of w times x, by the vectors of one kind; alone and four at a time."""
    from numba import njit

    from pyllm2.fast.vectors_q8 import dots

    four, one = dots(group, vnni)

    @njit
    def product(out, w, s, x, xs, n, size):  # type: ignore[no-untyped-def]
        g = n // size
        r = 4 * g
        four(out, 4, w, n, s, s + r, s + 2 * r, s + 3 * r, x, xs, g, size)
        for k in range(4):
            one(out + 16 + 4 * k, w + k * n, s + k * r, x, xs, g, size)

    def run(w: np.ndarray, s: np.ndarray, x: np.ndarray, xs: np.ndarray, size: int) -> np.ndarray:
        out = np.zeros(8, np.float32)
        product(*(a.ctypes.data for a in (out, w, s, x, xs)), w.shape[1], size)
        return out

    return run


def kinds() -> list[bool]:
    from pyllm2.fast.vectors_q8 import has_vnni

    return [False, True] if has_vnni() else [False]


@pytest.mark.parametrize("group", [4, 8, 16, 32, 64])
def test_both_kinds_of_vectors_give_exact_and_equal_products(group: int) -> None:
    """With scales of 1 every sum is an exact integer; with others both kinds give the same bits."""
    rng = np.random.default_rng(1)
    runs = [row_product(group, vnni) for vnni in kinds()]
    larger = [(128, 2), (192, 1)] if group == 64 else []
    for size, groups in [*((group, n) for n in range(1, min(35, 1024 // group) + 1)), *larger]:
        n = size * groups
        w, x = (rng.integers(-128, 128, shape, np.int8) for shape in ((4, n), n))
        w[0], x[: n // 2] = rng.choice([-128, 127], 2)  # the ends of the range
        ones = np.ones(4 * groups, np.float32)
        exact = np.tile(w.astype(np.int64) @ x.astype(np.int64), 2)
        scales, x_scales = (
            rng.lognormal(-4, 2, k).astype(np.float32) for k in (4 * groups, groups)
        )
        for run in runs:
            np.testing.assert_array_equal(run(w, ones, x, ones, size), exact)
        results = [run(w, scales, x, x_scales, size) for run in runs]
        for result in results:
            np.testing.assert_array_equal(result, results[0])
            np.testing.assert_array_equal(result[:4], result[4:])


WITHOUT_VNNI = [
    {"NUMBA_CPU_FEATURES": "+avx2,+fma"},
    {"NUMBA_CPU_NAME": "generic"},
    {"NUMBA_ENABLE_AVX": "0"},
]
ASK = "from pyllm2.fast.vectors_q8 import has_vnni; print(has_vnni())"
MULTIPLY = """
import numpy as np
from pyllm2.fast.llama2.decode import prompt_matmul_q8
rng = np.random.default_rng(0)
x, w = (rng.integers(-127, 128, (n, 192), np.int8) for n in (2, 9))
for size in (4, 8, 16, 32, 64):
    scales = np.ones((9, 192 // size), np.float32)
    print(prompt_matmul_q8(x, scales[:2], w, scales.ravel(), size).tolist())
"""


def output(code: str, **environment: str) -> str:
    env = {**os.environ, **environment}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("environment", WITHOUT_VNNI, ids=lambda e: next(iter(e)))
def test_a_processor_without_vnni_is_not_given_it(environment: dict[str, str]) -> None:
    """A VNNI instruction that Numba was told not to use would end the process."""
    assert output(ASK, **environment) == "False\n"


def test_products_are_the_same_where_vnni_is_forbidden(tmp_path: Path) -> None:
    """Compiled for AVX2 only, the products are the same."""
    found = output(MULTIPLY, **WITHOUT_VNNI[0], NUMBA_CACHE_DIR=str(tmp_path))
    assert found == output(MULTIPLY)


# ---- the step -------------------------------------------------------------------------------


class Watched:
    """Ops that record the smallest distance of an activation from the border of two int8 values.

    Rounding errors before quantisation are at most about 1e-5 of the largest activation; closer to
    a border either neighbour is correct, and a difference of one int8 moves the logits visibly.
    """

    def __init__(self, ops: Any) -> None:
        self.ops, self.nearest = ops, 0.5

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ops, name)

    def quantize(self, x: np.ndarray, group_size: int) -> Any:
        values, scales = self.ops.quantize(x, group_size)
        whole = scales.shape[1] * group_size
        sizes, each = np.abs(x[:, :whole]), np.repeat(scales, group_size, axis=1)
        quotients = sizes[each > 0] / each[each > 0]
        # The largest of a group is always 127.
        fractions = np.abs(quotients[quotients < 126.9] % 1 - 0.5)
        self.nearest = min(self.nearest, fractions.min(initial=0.5))
        return values, scales


@few()
@given(data=st.data())
def test_the_step_equals_the_composition_of_ops(data: st.DataObject) -> None:
    """Prompt and decode kernels agree with plain ops unless an activation is near a border.

    Measured over 100 models: 5e-7 of the largest logit. Near a border an int8 may differ by one,
    and the logits then by some hundredths of that.
    """
    model = data.draw(models())
    tokens = data.draw(strategies.token_ids(model.config, most=3))
    cut = data.draw(st.integers(0, len(tokens) - 1))
    watched = Watched(backends.ops("numba-strict"))
    composed = model.with_ops(watched)
    expected = composed.forward(tokens, 0, composed.new_cache(len(tokens)))
    cache = model.new_cache(len(tokens))
    found = [model.forward(tokens[:cut], 0, cache)] if cut else []
    for t in range(cut, len(tokens)):
        found.append(model.forward(tokens[t : t + 1], t, cache))
    far = watched.nearest > 1e-3
    event(f"an activation near a border: {not far}")
    size = max(1.0, float(np.abs(expected).max()))
    distance = np.abs(np.concatenate(found) - expected).max() / size
    assert distance <= (1e-5 if far else 0.25)


@few()
@given(data=st.data())
def test_the_bits_do_not_depend_on_the_number_of_threads(data: st.DataObject) -> None:
    """Threads share rows, and each quantises the same activations."""
    from pyllm2.compiling.pace import Pace
    from pyllm2.fast.llama2.engine import Conversation, Step

    model = data.draw(models())
    tokens = data.draw(strategies.token_ids(model.config, most=4))
    logits = []
    for threads in (1, 2):
        pace = Pace(threads, ())
        step = Step(model, len(tokens), lambda _, pace=pace: pace)
        cache = Conversation(model.new_cache(len(tokens)), lambda step=step: step)
        logits.append([step([(int(token), pos, cache)]) for pos, token in enumerate(tokens)])
    np.testing.assert_array_equal(*logits)


@given(seed=st.integers(0, 2**32 - 1))
def test_a_product_of_more_than_one_row_block_is_whole(seed: int) -> None:
    """Every row of every block is written, for every token."""
    from pyllm2.fast.llama2 import decode

    rng = np.random.default_rng(seed)
    x, w = (rng.integers(-127, 128, (n, 64), np.int8) for n in (3, 2 * decode.ROWS + 5))
    ones = np.ones((len(w), 1), np.float32)
    found = decode.prompt_matmul_q8(x, ones[:3], w, ones.ravel(), 64)
    np.testing.assert_array_equal(found, x.astype(np.float32) @ w.T.astype(np.float32))
