"""Arguments of the Python surface: numbers of any type, and one clear line for anything else."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyllm2
from pyllm2.errors import PyLLM2Error, TokenizerError, UsageError
from pyllm2.inference.language_model import LanguageModel
from pyllm2.inference.sampling import Sampler
from pyllm2.mersenne import MersenneTwister
from pyllm2.tokenizers import Tokenizer
from pyllm2.tokenizers.byte_level import byte_tokenizer

INTEGERS = [int, *(np.dtype(code).type for code in "bBhHiIlLqQ"), np.array]
REALS = [float, np.float32, np.float64, np.float16, np.array, Fraction]
ONCE = [1, 403, 407, 261]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """The bundled model."""
    return pyllm2.load(backend="numpy")


def generate(model: LanguageModel, **options: Any) -> list[int]:
    """A few ids, as Python integers."""
    known = {"prompt": ONCE, "max_new_tokens": 3, "seed": 5, **options}
    return [token.id for token in model.generate(**known)]


@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_of_any_type_are_the_same(model: LanguageModel, kind: Any) -> None:
    """For every argument that is a whole number, or several."""
    expected = generate(model, context=6, max_new_tokens=3)
    for change in (
        {"seed": kind(5)},
        {"max_new_tokens": kind(3)},
        {"context": kind(6)},
        {"stop": [kind(3)]},
    ):
        assert generate(model, **{"context": 6, **change}) == generate(model, context=6) == expected
    short = [kind(i) for i in (1, 3, 127)]
    assert generate(model, prompt=short) == generate(model, prompt=[1, 3, 127])
    np.testing.assert_array_equal(model.logits(short), model.logits([1, 3, 127]))
    assert model.tokenizer.decode(short) == model.tokenizer.decode([1, 3, 127])
    assert model.start(kind(7)).positions == 7
    assert Sampler(1.0, 0.9, kind(5)).rng.next_u32() == Sampler(1.0, 0.9, 5).rng.next_u32()
    assert MersenneTwister(kind(5)).u64() == MersenneTwister(5).u64()


@pytest.mark.parametrize("kind", REALS)
def test_reals_of_any_type_are_the_same(model: LanguageModel, kind: Any) -> None:
    """0.5 is exact in all of them."""
    expected = generate(model, temperature=0.5, top_p=0.5)
    assert generate(model, temperature=kind(0.5), top_p=kind(0.5)) == expected


@given(st.lists(st.integers(0, 255), min_size=1, max_size=5), st.sampled_from("bBhHiIlLqQ"))
def test_arrays_of_ids_are_lists_of_ids(model: LanguageModel, ids: list[int], code: str) -> None:
    """Of any integer type, and as rows of a batch."""
    array = np.array(ids).astype(code)
    ids = [int(i) % 1024 for i in array]
    if min(array) < 0:
        with pytest.raises(TokenizerError, match=r"^token id -\d+: the model has ids 0 to 1023$"):
            model.logits(array)
        return
    np.testing.assert_array_equal(model.logits(array), model.logits(ids))
    assert model.loss(array[None], [ids]) == model.loss([ids], np.array([ids]))  # type: ignore[arg-type]


WRONG = [None, 1.5, np.float64(1), "5", "abc", b"5", 1j, np.nan, [1], np.array([1.0, 2.0]), {}]
NO_IDS = [3, None, 1.5, "abc", b"abc", object(), [1.0], ["Once"], [None], [b"a"], [np.float64(1)]]
NO_TEXT = [3, None, 1.5, [97], ["a"], {"a"}, np.array([97]), object(), "a\ud83d", "\ud800"]
Call = Callable[[LanguageModel, Any], Any]
REFUSED: list[tuple[Call, list[Any]]] = [
    *(
        (lambda m, x, name=name: m.generate(ONCE, **{name: x}), WRONG)
        for name in ("seed", "max_new_tokens")
    ),
    (lambda m, x: m.generate(ONCE, context=x), WRONG[1:]),
    *(
        (lambda m, x, name=name: m.generate(ONCE, **{name: x}), [None, "5", 1j, b"5", [1, 2], {}])
        for name in ("temperature", "top_p")
    ),
    (lambda m, x: m.generate(x), [x for x in NO_IDS if not isinstance(x, (str, bytes))]),
    (lambda m, x: m.generate(ONCE, stop=x), [3, 1.5, object(), [1.0], [None], [b""]]),
    (lambda m, x: m.logits(x), NO_IDS),
    (lambda m, x: m.start().feed(x), NO_IDS),
    (lambda m, x: m.start(x), WRONG[1:]),
    (lambda m, x: m.loss(x, x), [*NO_IDS, [[1], [1, 2]], [[1.0]], [[True]], [["a"]]]),
    (lambda m, x: m.loss_and_grads(x, x), [*NO_IDS, [[1], [1, 2]], [[1.0]]]),
    (lambda m, x: Sampler(1.0, 0.9, x), WRONG),
    (lambda m, x: MersenneTwister(x), WRONG),
    (lambda m, x: pyllm2.load(backend="numpy", threads=x), [*WRONG[1:], 0, -1]),
    (lambda m, x: pyllm2.load(backend="numpy", tokenizer=x), [3, 1.5, ["a"]]),
]  # fmt: skip


@pytest.mark.parametrize("row", range(len(REFUSED)))
def test_anything_else_is_one_clear_line(model: LanguageModel, row: int) -> None:
    """A ValueError or a TokenizerError that names what was found, never another exception."""
    call, values = REFUSED[row]
    for value in values:
        with pytest.raises((ValueError, PyLLM2Error)) as refused:
            call(model, value)
        message = str(refused.value)
        assert type(refused.value) in (ValueError, TokenizerError, UsageError)
        assert "expected" in message or "no ids" in message
        assert "\n" not in message


@pytest.mark.parametrize("tokenizer", [pyllm2.load(backend="numpy").tokenizer, byte_tokenizer()])
def test_a_tokenizer_refuses_what_is_no_text_or_id(tokenizer: Tokenizer) -> None:
    """Both kinds of tokenizer, in the same words."""
    for text in NO_TEXT:
        for encode in (tokenizer.encode, tokenizer.encode_prompt):
            with pytest.raises(
                TokenizerError, match=r"^text: expected str |is half of a surrogate"
            ):
                encode(text)
    for ids in NO_IDS:
        with pytest.raises(TokenizerError, match="expected"):
            tokenizer.decode(ids)
    for i in WRONG:
        with pytest.raises(TokenizerError, match=r"^token id .*: expected a whole number$"):
            tokenizer.decode_one(i)


def test_bytes_of_any_type_are_text() -> None:
    """And a lone surrogate is the byte that it stands for."""
    for tokenizer in (pyllm2.load(backend="numpy").tokenizer, byte_tokenizer()):
        expected = tokenizer.encode(b"a\xff")
        for text in (bytearray(b"a\xff"), memoryview(b"a\xff"), "a\udcff", np.str_("a\udcff")):
            assert tokenizer.encode(text) == expected
