"""The generation loop: what is fed, when it ends, and how it goes on."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyllm2
from pyllm2.errors import ContextError
from pyllm2.inference.generate import PREFILL_CHUNK, Generation, prefill
from pyllm2.inference.language_model import LanguageModel
from pyllm2.inference.sampling import Sampler
from pyllm2.inference.stop_text import StopText
from pyllm2.inference.token import Token
from tests.support import llama2_files
from tests.support.profiles import few


class Recorder:
    """A session with limited room that records ids; its logits are their number."""

    def __init__(self, room: int) -> None:
        self.room, self.fed = room, []

    @property
    def pos(self) -> int:
        return len(self.fed)

    def feed(self, ids: Sequence[int], last_only: bool = False) -> Any:
        self.fed += ids
        self.room -= len(ids)
        assert self.room >= 0
        return np.full((1 if last_only else len(ids), 1), len(self.fed), np.float32)


@given(st.integers(1, 3 * PREFILL_CHUNK))
def test_a_prompt_is_fed_whole_once_and_in_order(n: int) -> None:
    """In any number of chunks; the logits are those after the last id."""
    session = Recorder(n)
    assert prefill(session, range(n)) == [n]
    assert session.fed == list(range(n))


@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 12))
def test_tokens_are_fed_back_until_a_limit(n: int, room: int, most: int, stop: int) -> None:
    """With 100 + length chosen each time: it ends at max_new_tokens, a full context or a stop."""
    session = Recorder(n + room)

    def choose(row: Any) -> int:
        return 100 + int(row[0])

    generation = Generation(session, range(n), choose, most, {100 + n + stop})
    new = [token.id for token in generation]
    assert new == list(range(100 + n, 100 + n + min(most, room + 1, stop)))
    assert session.fed[n:] + generation.unfed == new
    assert generation.new_tokens == len(new)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A random model with its tokenizer."""
    folder = tmp_path_factory.mktemp("generate")
    (folder / "m.bin").write_bytes(llama2_files.checkpoint())
    (folder / "t.bin").write_bytes(llama2_files.vocabulary())
    return pyllm2.load(folder / "m.bin", tokenizer=folder / "t.bin", backend="numpy")


@few()
@given(n=st.integers(0, 9), cut=st.integers(0, 9), seed=st.integers(0, 99))
def test_a_text_goes_on_in_its_session(model: LanguageModel, n: int, cut: int, seed: int) -> None:
    """Tokens made in two calls, with one sampler, are those made in one."""
    cut = min(cut, n)
    whole = [t.id for t in model.generate("a cab", n, seed=seed, stop=())]
    session, sampler = model.start(), Sampler(seed=seed)
    first = model.generate("a cab", cut, stop=(), session=session, choose=sampler)
    found = [t.id for t in first]
    prompt = first.unfed or first.prompt
    second = model.generate(prompt, n - cut, stop=(), session=session, choose=sampler)
    assert found + [t.id for t in second] == whole


def test_bytes_are_those_of_the_tokenizer(model: LanguageModel) -> None:
    """The space after BOS is dropped, as in decoding the whole."""
    tokens = list(model.generate([llama2_files.BOS], 9, seed=3, stop=()))
    assert b"".join(t.bytes for t in tokens) == model.tokenizer.decode([t.id for t in tokens])


def test_a_context_bounds_prompt_and_text(model: LanguageModel) -> None:
    """A longer prompt is refused at once; the text ends one token after the last position."""
    n = len(model.tokenizer.encode_prompt("a cab"))
    assert len(list(model.generate("a cab", 99, stop=(), context=n + 2))) == 3
    for options in ({"context": n - 1}, {"session": model.start(n - 1)}):
        with pytest.raises(ContextError, match=f"^prompt is {n} tokens, context is {n - 1}$"):
            model.generate("a cab", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *(("temperature", value, "a number ≥ 0") for value in (math.nan, -1, math.inf)),
        *(("top_p", value, "0 < p ≤ 1") for value in (math.nan, 1.5, -0.1)),
        *(("seed", value, "a whole number from 0 to 2^64 - 1") for value in (-1, 2**64)),
    ],
)
def test_a_parameter_out_of_range_is_refused(
    model: LanguageModel, name: str, value: float, expected: str
) -> None:
    """The error comes when `generate` is called, not at the first token."""
    error = re.escape(f"{name} = {value}: expected {expected}")
    with pytest.raises(ValueError, match=f"^{error}$"):
        model.generate("a cab", **{name: value})  # type: ignore[arg-type]


def test_top_p_0_switches_top_p_off(model: LanguageModel) -> None:
    """As top_p 1 does: the same tokens at the same seed."""
    texts = [
        [t.id for t in model.generate("a cab", temperature=1.0, top_p=p, seed=3)] for p in (0, 1)
    ]
    assert texts[0] == texts[1]


# ---- stop texts ----------------------------------------------------------------------------------

PIECES = st.lists(st.text("abc", max_size=3).map(str.encode), max_size=12)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4).map(str.encode), max_size=3)


@given(PIECES, STOPS)
def test_a_text_ends_before_its_first_stop_text(pieces: list[bytes], stops: list[bytes]) -> None:
    """Wherever the borders of tokens are; nothing that may begin a stop text passes too early."""
    stop_text = StopText(stops)
    given_so_far = shown = b""
    for i, piece in enumerate(pieces):
        given_so_far += piece
        shown += b"".join(token.bytes for token in stop_text.add(Token(i, piece)))
        places = [at for at in map(given_so_far.find, stops) if at >= 0]
        if places:
            assert stop_text.found is not None
            assert shown == given_so_far[: min(places)]
            assert not stop_text.rest()
            return
        assert given_so_far.startswith(shown)
        late = given_so_far[len(shown) :]
        longest = max(
            (n for s in stops for n in range(len(s)) if given_so_far.endswith(s[:n])), default=0
        )
        assert len(late) < longest + max(map(len, pieces), default=0) + 1
    shown += b"".join(token.bytes for token in stop_text.rest())
    assert shown == given_so_far
    assert stop_text.found is None


def saying(folder: Path, text: bytes) -> LanguageModel:
    """A model that says `text`, whose bytes are all different, and EOS."""
    (folder / "m.bin").write_bytes(llama2_files.saying(text))
    (folder / "t.bin").write_bytes(llama2_files.vocabulary())
    return pyllm2.load(folder / "m.bin", tokenizer=folder / "t.bin", backend="numpy")


@pytest.mark.parametrize(
    ("stop", "text", "stopped_by"),
    [
        (None, b"abcdef", llama2_files.EOS),
        ("cd", b"ab", b"cd"),
        ([b"xy", "ef"], b"abcd", b"ef"),
        ("fg", b"abcdef", llama2_files.EOS),
        ([llama2_files.byte_id(ord("c"))], b"ab", llama2_files.byte_id(ord("c"))),
        ([llama2_files.byte_id(ord("e")), "x"], b"abcd", llama2_files.byte_id(ord("e"))),
    ],
)
def test_stop_takes_ids_and_texts(
    tmp_path: Path, stop: Any, text: bytes, stopped_by: int | bytes
) -> None:
    """Ids replace those of the model, texts are in addition; the generation says what it was."""
    generation = saying(tmp_path, b"abcdef").generate(stop=stop, temperature=0)
    assert b"".join(token.bytes for token in generation) == text
    assert (generation.finish_reason, generation.stopped_by) == ("stop", stopped_by)
    assert next(generation, None) is None


def test_a_generation_says_why_it_ended(tmp_path: Path) -> None:
    """After max_new_tokens, or because the context is full; an empty stop text is refused."""
    model = saying(tmp_path, b"abcdef")
    for options, reason in (({"max_new_tokens": 2}, "length"), ({"context": 4}, "context")):
        generation = model.generate(temperature=0, **options)  # type: ignore[arg-type]
        assert generation.finish_reason is None
        assert len(list(generation)) in (2, 4)
        assert generation.finish_reason == reason
    with pytest.raises(ValueError, match="stop: expected a text that is not empty"):
        model.generate(stop="")


def test_log_probabilities_are_those_of_the_model(model: LanguageModel) -> None:
    """Before temperature and top-p, in float64."""
    tokens = list(model.generate("a cab", 4, temperature=2, seed=1, stop=(), logprobs=True))
    ids = model.tokenizer.encode_prompt("a cab")
    for n, token in enumerate(tokens):
        logits = model.logits([*ids, *(t.id for t in tokens[:n])])[-1].astype(np.float64)
        p = np.exp(logits) / np.exp(logits).sum()
        assert token.logprob == pytest.approx(np.log(p[token.id]), abs=1e-5)
    assert next(model.generate("a cab", 1)).logprob is None


def test_the_times_of_a_generation_are_those_of_its_tokens(tmp_path: Path) -> None:
    """The first token's, then the others': nothing is counted before, and nothing twice."""
    generation = saying(tmp_path, b"abcdef").generate(temperature=0)
    assert generation.prompt_seconds == generation.seconds == 0
    began = time.perf_counter()
    next(generation)
    assert generation.prompt_seconds > generation.seconds == 0
    list(generation)
    assert 0 < generation.seconds < time.perf_counter() - began - generation.prompt_seconds
