"""Which token comes next."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyllm2.errors import NotFiniteError
from pyllm2.inference.sampling import (
    Sampler,
    argmax,
    multinomial,
    nucleus,
    probabilities,
    sample_top_p,
)
from pyllm2.inference.xorshift import STATE_OF_SEED_0, XorShift

V = st.integers(1, 60)
logits = hnp.arrays(
    np.float32,
    V,
    elements=st.one_of(
        st.floats(-40, 40, width=32), st.sampled_from([0.0, 1.0, -200.0, float("-inf")])
    ),
).filter(lambda a: np.isfinite(a).any())
seeds = st.integers(0, 2**64 - 1)
top_ps = st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 1e-6, 0.5, 0.9, 1.0]))


@given(logits, st.sampled_from([0.0, 0.1, 1.0, 3.0]), top_ps, seeds)
@example(np.float32([0, -200]), 1.0, 1.0, 3)  # V - 1 is impossible
def test_a_token_of_probability_zero_is_never_chosen(
    x: Any, temperature: float, top_p: float, seed: int
) -> None:
    """It is not chosen at any random number, temperature or top_p."""
    sampler = Sampler(temperature, top_p, seed)
    p = probabilities(x, temperature or 1e-3)
    for _ in range(20):
        assert p[sampler(x)] > 0


class HighestCoin:
    """A generator that always gives the largest number below 1."""

    def next_float(self) -> float:
        return 1 - 2.0**-24


def test_a_sum_that_stays_below_the_coin_still_gives_a_possible_token() -> None:
    """If rounding keeps Σp below the number, the last id with p > 0 is chosen, not V - 1."""
    rng = np.random.default_rng(5)
    x = np.append(rng.normal(0, 1, 400), -200).astype(np.float32)
    p = probabilities(x, 1.0)
    short = p * np.float32(0.999)
    assert multinomial(short, HighestCoin().next_float()) == 400  # the original's answer
    assert p[400] == 0
    sampler = Sampler(1.0, 1.0, 1)
    sampler.rng = HighestCoin()  # type: ignore[assignment]
    assert p[sampler(x)] > 0


@given(logits, st.floats(2.0**-20, 1 - 2.0**-20, width=32))
def test_the_nucleus_is_the_smallest_set_that_exceeds_top_p(x: Any, top_p: float) -> None:
    """Without its last id its sum is at most top_p; no id outside is more probable."""
    p = probabilities(x, 1.0)
    ids, running = nucleus(p, top_p)
    assert len(set(ids.tolist())) == len(ids) >= 1
    assert (np.diff(p[ids]) <= 0).all()
    left_out = np.delete(p, ids)
    assert left_out.size == 0 or left_out.max() <= p[ids].min()
    assert len(ids) == 1 or running[-2] <= np.float32(top_p)
    # Exceeded, unless rounding kept the sum of all candidates short of it.
    cutoff_lost = left_out.astype(np.float64).sum()
    assert running[-1] > np.float32(top_p) or 1 - cutoff_lost - top_p <= 1e-5


@given(logits)
def test_equal_probabilities_are_ordered_by_id(x: Any) -> None:
    """The sort is stable, as glibc makes the original's."""
    p = probabilities(np.round(x), 1.0)
    ids, _ = nucleus(p, 0.999)
    for a, b in pairwise(ids):
        assert p[a] > p[b] or a < b


@given(logits, top_ps, seeds)
def test_temperature_zero_is_argmax_and_draws_no_coin(x: Any, top_p: float, seed: int) -> None:
    """It is the lowest id of the largest logit; the generator is not used."""
    sampler = Sampler(0.0, top_p, seed)
    before = sampler.rng.state
    assert sampler(x) == argmax(x) == min(np.flatnonzero(x == x.max()))
    assert sampler.rng.state == before


@given(logits, seeds)
def test_one_coin_a_token_and_the_logits_are_left_alone(x: Any, seed: int) -> None:
    """Every branch takes one random number per token."""
    sampler, coins, kept = Sampler(0.7, 0.9, seed), XorShift(seed or STATE_OF_SEED_0), x.copy()
    sampler(x)
    coins.next_float()
    assert sampler.rng.state == coins.state
    np.testing.assert_array_equal(x, kept)


@given(logits, st.integers(0, 2**24 - 1))
def test_multinomial_inverts_the_running_sum(x: Any, coin: int) -> None:
    """The chosen id is the first whose running sum exceeds the number."""
    p = probabilities(x, 1.0)
    value = np.float32(coin / 2**24)
    total, expected = np.float32(0), len(p) - 1
    for i, one in enumerate(p):
        total += one
        if value < total:
            expected = i
            break
    assert multinomial(p, float(value)) == expected


@given(logits)
def test_probabilities_sum_to_one(x: Any) -> None:
    """Their sum is 1 within the rounding of V terms."""
    p = probabilities(x, 1.0)
    assert (p >= 0).all()
    assert abs(p.astype(np.float64).sum() - 1) <= (len(p) + 2) * 2.0**-24


def test_a_temperature_that_overflows_is_refused() -> None:
    """4 / 1e-38 is infinite, and infinity minus infinity is NaN."""
    with pytest.raises(NotFiniteError, match="temperature 1e-38"):
        Sampler(1e-38, 0.9, 1)(np.float32([4, 4, 0]))


def test_seed_zero_is_a_fixed_documented_state() -> None:
    """The generator never leaves state 0."""
    assert Sampler(seed=0).rng.state == STATE_OF_SEED_0
    assert XorShift(0).next_u32() == 0


# Every way to share eight eighths among one to three ids: sums are exact, so coins can meet them.
EIGHTHS = [
    np.float32(counts) / np.float32(8)
    for V in (1, 2, 3)
    for counts in product(range(9), repeat=V)
    if sum(counts) == 8
]


def test_a_sum_equal_to_the_coin_does_not_exceed_it() -> None:
    """The running sum must be greater than the number, in all small exact cases."""
    for p, coin in product(EIGHTHS, np.arange(8) / 8):
        expected = next(i for i in range(len(p)) if p[: i + 1].sum() > coin)
        assert multinomial(p, coin) == expected, (p, coin)


def test_top_p_is_the_plain_rule() -> None:
    """Sort by (-p, id), keep until the sum exceeds top_p, scale the number, choose."""
    for p, top_p, coin in product(EIGHTHS, np.arange(1, 8) / 8, np.arange(8) / 8):
        order = sorted(range(len(p)), key=lambda i, p=p: (-p[i], i))
        sums = np.cumsum(p[order])
        kept = int((sums <= top_p).sum()) + 1
        chosen = int((sums <= coin * sums[kept - 1]).sum())
        assert nucleus(p, top_p)[0].tolist() == order[:kept], (p, top_p)
        assert sample_top_p(p, top_p, coin) == order[chosen], (p, top_p, coin)


@given(logits, st.sampled_from([0.5, 1.0, 3.0]))
def test_probabilities_are_the_plain_loop(x: Any, temperature: float) -> None:
    """They have the bits of exp rounded from float64 and one float32 running sum."""
    scaled = x / np.float32(temperature)
    e = np.exp((scaled - scaled.max()).astype(np.float64)).astype(np.float32)
    total = np.float32(0)
    for one in e:
        total += one
    np.testing.assert_array_equal(probabilities(x, temperature), e / total)


@given(logits, st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from([0.0, 0.3, 0.9, 1.0]), seeds)
def test_a_sampler_is_its_parts(x: Any, temperature: float, top_p: float, seed: int) -> None:
    """It is softmax, the generator and top-p sampling, or multinomial if top_p is 0 or 1."""
    sampler, coins = Sampler(temperature, top_p, seed), XorShift(seed or STATE_OF_SEED_0)
    p = probabilities(x, temperature)
    for _ in range(5):
        coin = coins.next_float()
        drawn = sample_top_p(p, top_p, coin) if 0 < top_p < 1 else multinomial(p, coin)
        assert sampler(x) == drawn or p[drawn] == 0


def test_below_the_coin_it_is_the_last_possible_id() -> None:
    """The original chooses V - 1 here."""
    x = np.append(np.random.default_rng(5).normal(0, 1, 400), [-200, -200]).astype(np.float32)
    sampler = Sampler(1.0, 1.0, 1)

    class AboveAll:
        def next_float(self) -> float:
            return 1.5

    sampler.rng = AboveAll()  # type: ignore[assignment]
    assert sampler(x) == 399


@given(seeds)
def test_the_generator_is_xorshift64_star(seed: int) -> None:
    """NumPy's 64-bit integers, which wrap around, give the same states."""
    rng, x = XorShift(seed), np.array([seed], np.uint64)
    for _ in range(4):
        x ^= x >> np.uint64(12)
        x ^= x << np.uint64(25)
        x ^= x >> np.uint64(27)
        assert rng.next_u32() == (x * np.uint64(0x2545F4914F6CDD1D) >> np.uint64(32))[0]
        assert rng.state == x[0]


def test_the_generators_first_word_is_the_documented_one() -> None:
    """It is the example of the docstring, from the original."""
    assert XorShift(42).next_u32() == 0x56CE4AB7


@given(seeds)
def test_a_coin_is_the_upper_24_bits_of_a_word(seed: int) -> None:
    """So it is below 1 and exact in float32."""
    words, coins = XorShift(seed), XorShift(seed)
    assert coins.next_float() * 2**24 == words.next_u32() >> 8
