"""csrc/common/mersenne.c against NumPy's MT19937 and the formulas; initial weights."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pyllm2.parameters import Parameters
from tests.csrc.gpt2_definition import Twister
from tests.csrc.oracle import same_bits
from tests.csrc.trainer_parts import first_weights, normals
from tests.support.gpt2_files import CONFIG, FIELDS

SEEDS = (0, 1, 42, 5489, 2**32 - 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_words_are_those_of_numpy(trainer_library, seed):
    """Over three refills, the words after a seed are those of NumPy's MT19937."""
    trainer_library.seed(seed)
    got = [trainer_library.u32() for _ in range(2000)]
    assert got == Twister(seed).words(2000).tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_floats_are_the_low_bits_of_words(trainer_library, seed):
    """A float has 24 bits of a word, a double 53 bits of two words, the first of which is high."""
    trainer_library.seed(seed)
    for one, high, low in Twister(seed).words(900).reshape(300, 3).tolist():
        assert trainer_library.f32() == one % 2**24 / 2**24
        assert trainer_library.u64() == high * 2**32 + low
    trainer_library.seed(seed)
    for high, low in Twister(seed).words(600).reshape(300, 2).tolist():
        expected = (high * 2**32 + low) % 2**53 / 2**53
        assert trainer_library.f64() == expected


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 10, 700])
def test_shuffle_swaps_from_the_last_item_down(trainer_library, seed, n):
    """As defined; a second shuffle continues the sequence of words, and no word is skipped."""
    random = Twister(seed)
    trainer_library.seed(seed)
    got, expected = np.arange(n, dtype=np.int32), list(range(n))
    for _ in range(2):
        trainer_library.shuffle(got, n)
        random.shuffle(expected)
        assert got.tolist() == expected
    assert trainer_library.u32() == random.words(1)[0]


def box_muller(radius_from, angle_from):
    """Two normals from two uniforms, in float64, and their radius."""
    radius = np.sqrt(-2 * np.log(radius_from + 1e-12))
    angle = 2 * np.pi * angle_from
    return radius * np.cos(angle), radius * np.sin(angle), radius


def defined_normals(n, random):
    """Standard normals in float64, and the radius of each, which its error is proportional to."""
    z, r = np.zeros(n), np.zeros(n)
    if n < 16:
        for i in range(0, n, 2):
            high, low = random.words(4).astype(object).reshape(2, 2).T
            u1, u2 = ((high * 2**32 + low) % 2**53 / 2**53).astype(np.float32).astype(float)
            *pair, radius = box_muller(1 - u2, u1)
            z[i : i + 2], r[i : i + 2] = pair[: n - i], radius
        return z, r
    uniforms = (random.words(n) % 2**24).astype(float) / 2**24
    blocks = [(i, uniforms[i : i + 16]) for i in range(0, n - 15, 16)]
    if n % 16:
        blocks.append((n - 16, (random.words(16) % 2**24).astype(float) / 2**24))
    for i, u in blocks:
        cosines, sines, radii = box_muller(1 - u[:8], u[8:])
        z[i : i + 16], r[i : i + 16] = np.r_[cosines, sines], np.r_[radii, radii]
    return z, r


@pytest.mark.parametrize("n", [1, 2, 5, 14, 15, 16, 17, 31, 32, 33, 100])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.5, 0.02)])
def test_normals_are_those_of_box_and_muller(trainer_library, n, mean, std):
    """Every normal is the float64 one up to the rounding of a few float32 operations.

    The angle, below 8, is rounded to 2^-22; logarithm, root, cosine and three products or sums
    add half an ulp or one each, relative to the radius: below 16 * 2^-24 together.
    """
    for seed in SEEDS:
        random = Twister(seed)
        trainer_library.seed(seed)
        got = normals(trainer_library, n, mean, std)
        z, radius = defined_normals(n, random)
        bound = 2.0**-20 * radius * std + 2.0**-23 * abs(mean) + 1e-7 * std
        assert (np.abs(got - (z * float(np.float32(std)) + mean)) <= bound).all(), seed
        assert trainer_library.u32() == random.words(1)[0]


def test_first_weights_are_drawn_matrix_by_matrix(trainer_library):
    """Embeddings without padding, then four matrices per layer, two with a smaller std; norms 1."""
    L, C = CONFIG.num_layers, CONFIG.channels
    floats = first_weights(trainer_library, [getattr(CONFIG, f) for f in FIELDS])
    params = Parameters(CONFIG.shapes(), floats)
    trainer_library.seed(42)

    def drawn(std, *shape):
        return normals(trainer_library, math.prod(shape), 0.0, std).reshape(shape)

    small = np.float32(0.02) * (np.float32(1) / np.sqrt(np.float32(2 * L)))
    expected = {name: np.zeros(shape, np.float32) for name, shape in params.shapes.items()}
    expected["wte"][: CONFIG.vocab_size] = drawn(0.02, CONFIG.vocab_size, C)
    expected["wpe"][...] = drawn(0.02, CONFIG.max_seq_len, C)
    for i in range(L):
        expected["qkvw"][i] = drawn(0.02, 3 * C, C)
        expected["attprojw"][i] = drawn(small, C, C)
        expected["fcw"][i] = drawn(0.02, 4 * C, C)
        expected["fcprojw"][i] = drawn(small, C, 4 * C)
    for name in ("ln1w", "ln2w", "lnfw"):
        expected[name][...] = 1
    for name in expected:
        assert same_bits(params[name], expected[name]), name
