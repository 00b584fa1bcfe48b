"""Which token comes next."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyllm2.errors import NotFiniteError
from pyllm2.rng import STATE_OF_SEED_0, XorShift
from pyllm2.sampling import Sampler, argmax, multinomial, nucleus, probabilities

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
    """Whatever the coin, temperature and top-p."""
    sampler = Sampler(temperature, top_p, seed)
    p = probabilities(x, temperature or 1e-3)
    for _ in range(20):
        assert p[sampler(x)] > 0


class HighestCoin:
    """A generator that always gives the largest coin there is."""

    def next_float(self) -> float:
        return 1 - 2.0**-24


def test_a_sum_that_stays_below_the_coin_still_gives_a_possible_token() -> None:
    """Rounding may keep Σp under the coin: then the last id of positive probability, not V - 1."""
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
    """Without its last member the sum is at most top_p; nothing left out is more probable."""
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
    """The sort is stable, as the original's is with glibc."""
    p = probabilities(np.round(x), 1.0)
    ids, _ = nucleus(p, 0.999)
    for a, b in pairwise(ids):
        assert p[a] > p[b] or a < b


@given(logits, top_ps, seeds)
def test_temperature_zero_is_argmax_and_draws_no_coin(x: Any, top_p: float, seed: int) -> None:
    """The lowest id of the largest logit; the generator is left where it was."""
    sampler = Sampler(0.0, top_p, seed)
    before = sampler.rng.state
    assert sampler(x) == argmax(x) == min(np.flatnonzero(x == x.max()))
    assert sampler.rng.state == before


@given(logits, seeds)
def test_one_coin_a_token_and_the_logits_are_left_alone(x: Any, seed: int) -> None:
    """So that a seed says the same whichever branch was taken."""
    sampler, coins, kept = Sampler(0.7, 0.9, seed), XorShift(seed or STATE_OF_SEED_0), x.copy()
    sampler(x)
    coins.next_float()
    assert sampler.rng.state == coins.state
    np.testing.assert_array_equal(x, kept)


@given(logits, st.integers(0, 2**24 - 1))
def test_multinomial_inverts_the_running_sum(x: Any, coin: int) -> None:
    """The chosen id is the first whose running sum, added up one by one, exceeds the coin."""
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
    """Within the rounding of V terms."""
    p = probabilities(x, 1.0)
    assert (p >= 0).all()
    assert abs(p.astype(np.float64).sum() - 1) <= (len(p) + 2) * 2.0**-24


def test_a_temperature_that_overflows_is_refused() -> None:
    """4 / 1e-38 is infinite, and infinity minus infinity is no probability."""
    with pytest.raises(NotFiniteError, match="temperature 1e-38"):
        Sampler(1e-38, 0.9, 1)(np.float32([4, 4, 0]))


def test_seed_zero_is_a_fixed_documented_state() -> None:
    """The generator could never leave a state of 0."""
    assert Sampler(seed=0).rng.state == STATE_OF_SEED_0
    assert XorShift(0).next_u32() == 0
