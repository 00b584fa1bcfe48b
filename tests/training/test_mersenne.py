"""The Mersenne Twister against its definition and against numbers recorded from llm.c."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyllm2.errors import UsageError
from pyllm2.mersenne import MersenneTwister
from tests.support.normals import NORMAL_BOUND, ULP

SEEDS = st.integers(0, 2**32 - 1)


def words(seed: int) -> Iterator[int]:
    """Endless words of MT19937, from its definition (Matsumoto & Nishimura 1998)."""
    w = [seed]
    for j in range(1, 624):
        w.append((1812433253 * (w[-1] ^ w[-1] >> 30) + j) % 2**32)
    while True:
        for i in range(624):
            y = (w[i] & 0x80000000) | (w[(i + 1) % 624] & 0x7FFFFFFF)
            w[i] = w[(i + 397) % 624] ^ y >> 1 ^ (0x9908B0DF if y & 1 else 0)
        for y in w:
            y ^= y >> 11
            y ^= y << 7 & 0x9D2C5680
            y ^= y << 15 & 0xEFC60000
            yield y ^ y >> 18


@given(SEEDS)
def test_words_equal_those_of_the_definition(seed: int) -> None:
    """1300 words span two regenerations of the 624 words of state."""
    expected = words(seed)
    assert MersenneTwister(seed).words(1300).tolist() == [next(expected) for _ in range(1300)]


@given(SEEDS, st.lists(st.sampled_from(["u32", "u64", "f32", "f64", "uniform"]), max_size=30))
def test_every_draw_consumes_the_next_words(seed: int, draws: list[str]) -> None:
    """Each kind of draw takes one or two words, in any sequence of draws."""
    rng, w = MersenneTwister(seed), words(seed)
    for draw in draws:
        first = next(w)
        second = next(w) if draw in ("u64", "f64") else 0
        expected = {
            "u32": lambda a, b: a,
            "u64": lambda a, b: a * 2**32 + b,
            "f32": lambda a, b: (a % 2**24) / 2**24,
            "f64": lambda a, b: ((a * 2**32 + b) % 2**53) / 2**53,
            "uniform": lambda a, b: np.float32((a % 2**24) / 2**24) * np.float32(5) - np.float32(2),
        }[draw](first, second)
        assert (rng.uniform(-2, 3) if draw == "uniform" else getattr(rng, draw)()) == expected


@given(SEEDS, st.integers(0, 50))
def test_permute_swaps_from_the_last_element_down(seed: int, n: int) -> None:
    """`permute` shuffles the given order and takes n - 1 words (none for n ≤ 1)."""
    rng, w = MersenneTwister(seed), words(seed)
    values = np.arange(n, dtype=np.int32)
    expected = list(range(n))
    for _ in range(2):
        rng.permute(values)
        for i in range(n - 1, 0, -1):
            j = next(w) % (i + 1)
            expected[i], expected[j] = expected[j], expected[i]
    assert values.tolist() == expected
    assert rng.u32() == next(w)


def normals(w: Iterator[int], n: int) -> list[float]:
    """Box-Muller in float64, from the same float32 uniforms in the same order."""

    def f32() -> float:
        return (next(w) % 2**24) / 2**24

    def f64() -> float:
        return float(np.float32(((next(w) * 2**32 + next(w)) % 2**53) / 2**53))

    def pair(u: float, turn: float) -> tuple[float, float]:
        theta = float(np.float32(2 * math.pi * turn))
        r = math.sqrt(-2 * math.log(np.float32(u + 1e-12)))
        return r * math.cos(theta), r * math.sin(theta)

    if n < 16:
        out = []
        for _ in range(0, n, 2):
            turn, u = f64(), f64()
            out += pair(float(1 - np.float32(u)), turn)
        return out[:n]
    out = [f32() for _ in range(n)]
    starts = list(range(0, n - 15, 16))
    for start in [*starts, *([n - 16] if n % 16 else [])]:
        if start == n - 16 and n % 16:
            out[start:] = [f32() for _ in range(16)]
        a = out[start : start + 16]
        both = [pair(1 - a[t], a[t + 8]) for t in range(8)]
        out[start : start + 16] = [x for x, _ in both] + [y for _, y in both]
    return out


@example(1, 15, (0.0, 1.0))
@example(1, 16, (0.0, 1.0))
@given(SEEDS, st.integers(0, 70), st.sampled_from([(0.0, 1.0), (0.0, 0.02), (1.5, 0.5)]))
def test_normal_variates_follow_box_muller(seed: int, n: int, of: tuple[float, float]) -> None:
    """Variates of short and long calls are within their bound and take the right words."""
    mean, std = of
    rng, w = MersenneTwister(seed), words(seed)
    found = rng.normal(n, mean, std)
    z = np.array(normals(w, n))
    expected = z * float(np.float32(std)) + mean
    assert found.dtype == np.float32
    assert found.shape == (n,)
    allowed = NORMAL_BOUND * np.abs(z * std) + ULP * np.abs(expected)
    assert np.all(np.abs(found - expected) <= allowed)
    assert rng.u32() == next(w)


def test_normal_variates_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 7 blocks give the same variates as one chunk."""
    expected = MersenneTwister(3).normal(1000)
    monkeypatch.setattr("pyllm2.mersenne.CHUNK", 7)
    np.testing.assert_array_equal(MersenneTwister(3).normal(1000), expected)


@given(SEEDS, st.integers(0, 1500))
def test_a_restored_generator_continues_exactly(seed: int, n: int) -> None:
    """A saved state gives the same words again; it is a copy."""
    rng = MersenneTwister(seed)
    rng.words(n)
    state, position = rng.state()
    assert state.dtype == np.uint32
    expected = rng.words(700)
    other = MersenneTwister(0)
    other.set_state(state, position)
    np.testing.assert_array_equal(other.words(700), expected)
    rng.set_state(state, position)
    np.testing.assert_array_equal(rng.words(700), expected)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_beyond_32_bits_is_refused(seed: int) -> None:
    """A seed is not reduced to 32 bits silently."""
    with pytest.raises(UsageError, match=f"^seed {seed}: "):
        MersenneTwister(seed)


# ---- recorded numbers -----------------------------------------------------------------------


@pytest.fixture
def recorded(shared: Path) -> dict[int, dict[str, list[int]]]:
    """llm.c's numbers by seed."""
    text = (shared / "golden/llmc/rand.json").read_text()
    return {int(seed): row for seed, row in json.loads(text).items()}


def test_words_floats_and_permutations_equal_the_recorded_ones(recorded: dict) -> None:  # type: ignore[type-arg]
    """All draws but normal variates equal llm.c's exactly."""
    for seed, row in recorded.items():
        w = MersenneTwister(seed).words(1252).tolist()
        assert w[:20] == row["u32_first20"]
        assert w[620:630] == row["u32_620_630"]
        assert w[1244:] == row["u32_1244_1252"]
        for name, draw in (
            ("u64", lambda rng: str(rng.u64())),
            ("f32", MersenneTwister.f32),
            ("f64", MersenneTwister.f64),
            ("uniform_-2_3", lambda rng: rng.uniform(-2, 3)),
        ):
            rng = MersenneTwister(seed)
            assert [draw(rng) for _ in row[name]] == row[name]
        for n, order in row["perm"].items():
            rng, values = MersenneTwister(seed), np.arange(int(n), dtype=np.int32)
            rng.permute(values)
            assert values.tolist() == order["first"]
            rng.permute(values)
            assert values.tolist() == order["second_on_top"]
            assert rng.u32() == order["next_u32"]
        for n in (1, 2, 5, 8, 15, 16):
            rng = MersenneTwister(seed)
            rng.normal(n)
            assert rng.u32() == row[f"next_u32_after_normal_n{n}"]


def test_normal_variates_are_close_to_the_recorded_ones(shared: Path) -> None:
    """98 % are equal in float32; the rest differ by at most the errors of two math libraries."""
    same = total = 0
    with np.load(shared / "golden/llmc/rand_normals.npz") as recorded:
        for name, expected in recorded.items():
            match = re.fullmatch(r"s(\d+)_n(\d+)_m([\d.]+)_s([\d.]+)", name)
            if match is None:
                continue
            seed, n, mean, std = int(match[1]), int(match[2]), float(match[3]), float(match[4])
            found = MersenneTwister(seed).normal(n, mean, std)
            same += int((found == expected).sum())
            total += n
            z = np.abs(expected - np.float64(mean))
            assert np.all(np.abs(found - expected) <= NORMAL_BOUND * z + ULP * np.abs(expected))
    assert total > 5000
    assert same >= 0.98 * total
