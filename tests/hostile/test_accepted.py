"""Rows of the table that are no refusals: odd, but understood, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..cli.program import Outcome, in_process
from ..cli.tiny import PIECES, SCORES, SHAPE, V, checkpoint, lay_out, vocabulary
from .case import CHAT, GENERATE, RUN
from .model_files import INT_MAX, SIZE, patched, too_short, v0_sizes
from .tokenizer_files import GOOD

PROMPT = ("--prompt", "a cab")


def outcome_with(folder: Path, argv: tuple[str, ...], **files: bytes) -> Outcome:
    """The command's outcome with m.bin (m=…) or t.bin (t=…) replaced."""
    lay_out(folder, {f"{name}.bin": data for name, data in files.items()})
    return in_process(argv, folder)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("argv", [(*GENERATE, *PROMPT), RUN], ids=["generate", "run"])
def test_v1_says_what_v0_says(argv: tuple[str, ...], shared: bool, tmp_path: Path) -> None:
    """Row 4: a v1 file is recognised by its magic and is the same model."""
    v0 = outcome_with(tmp_path, argv, m=checkpoint(0, shared))
    v1 = outcome_with(tmp_path, argv, m=checkpoint(1, shared))
    assert (v1.code, v1.out) == (0, v0.out)


CUT = SIZE - v0_sizes(SHAPE)["rope_sin"] - 1
UNUSED = too_short(CUT, SHAPE).removesuffix(": download incomplete?")


@pytest.mark.parametrize(
    ("model", "tokenizer", "warning"),
    [
        (checkpoint() + b"1234", GOOD,
         f"m.bin: 4 bytes after the last tensor (which ends at byte {SIZE}): ignored"),
        (checkpoint()[:CUT], GOOD, f"m.bin: {UNUSED}: playing on, these tables are not used"),
        (checkpoint(), GOOD + b"abc", None),
        (checkpoint(), b"\xff" + GOOD[1:], None),
    ],
    ids=["2-trailing-bytes", "3-rope-cut", "20-tokenizer-trailing-bytes", "22-longest-piece"],
)  # fmt: skip
def test_run_plays_what_the_original_plays(
    model: bytes, tokenizer: bytes, warning: str | None, tmp_path: Path
) -> None:
    """Faults that the original cannot see change no byte of `run`'s stdout."""
    good = outcome_with(tmp_path, RUN)
    odd = outcome_with(tmp_path, RUN, m=model, t=tokenizer)
    assert (odd.code, odd.out) == (0, good.out)
    said = [line for line in odd.err.decode().splitlines() if "warning" in line]
    assert said == ([f"pyllm2: warning: {warning}"] if warning else [])


@pytest.mark.parametrize("declared", [0, 5, 999, 2**32 - 1])
def test_a_false_longest_piece_is_a_warning(declared: int, tmp_path: Path) -> None:
    """Row 22: the length is recomputed, the text is the same, and the difference is said."""
    good = outcome_with(tmp_path, (*GENERATE, *PROMPT))
    lie = outcome_with(tmp_path, (*GENERATE, *PROMPT), t=declared.to_bytes(4, "little") + GOOD[4:])
    assert (lie.code, lie.out) == (0, good.out)
    warning = f"pyllm2: warning: t.bin: max_token_length = {declared} (byte 0): it is 6"
    assert lie.err.decode().splitlines()[0] == warning


def test_more_tokens_than_the_model_knows_is_a_warning(tmp_path: Path) -> None:
    """Row 23: the first V are used, as in the original, and it is said."""
    good = outcome_with(tmp_path, (*GENERATE, *PROMPT))
    more = outcome_with(tmp_path, (*GENERATE, *PROMPT), t=vocabulary([*PIECES, b"x", b"y"]))
    assert (more.code, more.out) == (0, good.out)
    assert more.err.decode().splitlines()[0] == (
        f"pyllm2: warning: t.bin: has {V + 2} tokens, m.bin expects {V}: "
        f"the first {V} are used, is it the right tokenizer?"
    )


def tokenize(folder: Path, *argv: str | bytes, stdin: bytes = b"") -> bytes:
    """What `tokenize` prints."""
    outcome = in_process(("tokenize", "--tokenizer", "t.bin", *argv), folder, stdin)
    assert (outcome.code, outcome.err) == (0, b"")
    return outcome.out


def test_of_equal_pieces_the_lowest_id_wins(tmp_path: Path) -> None:
    """Row 26: a duplicate at the end, even with a better score, changes no id."""
    lay_out(tmp_path)
    before = tokenize(tmp_path, "a cab ca")
    (tmp_path / "t.bin").write_bytes(vocabulary([*PIECES, b"a", b"ca"], [*SCORES, 9.0, 9.0]))
    assert tokenize(tmp_path, "a cab ca") == before


def test_a_piece_may_hold_a_zero_byte(tmp_path: Path) -> None:
    """Row 26: tokens are bytes; NUL ends nothing."""
    lay_out(tmp_path, {"t.bin": vocabulary([*PIECES, b"a\0b"])})
    assert tokenize(tmp_path, "--decode", str(V)) == b"a\0b"


@pytest.mark.parametrize("prompt", ["", " ", "     "])
def test_a_prompt_may_be_empty_or_only_spaces(prompt: str, tmp_path: Path) -> None:
    """Row 52: nothing is BOS alone; spaces are text and are echoed."""
    lay_out(tmp_path)
    ids = tokenize(tmp_path, prompt).split()
    assert len(ids) == (len(prompt) + 2 if prompt else 1)
    outcome = in_process((*GENERATE, "--prompt", prompt, "--max-new-tokens", "0"), tmp_path)
    assert (outcome.code, outcome.out) == (0, prompt.encode() + b"\n")


@pytest.mark.parametrize(
    "argv",
    [
        (*CHAT, "--prompt", "ab" * 300, "--system", "c" * 2000, "--max-new-tokens", "9"),
        (*RUN, "-n", "700", "-m", "chat", "-i", "ab" * 300, "-y", ""),
        (*RUN, "-n", "2100", "-m", "chat", "-i", "b", "-y", "c" * 2000),
    ],
    ids=["chat", "run-prompt", "run-system"],
)
def test_a_chat_prompt_has_no_longest_length(argv: tuple[str, ...], tmp_path: Path) -> None:
    """Row 54: 600 bytes, which overflow the original's stack, are a message like another."""
    outcome = outcome_with(tmp_path, argv, m=checkpoint(seq_len=4000))
    assert outcome.code == 0
    assert outcome.out.startswith(b"Assistant: ")
    assert b"error" not in outcome.err


@pytest.mark.parametrize("text", ["<s>", "</s>", "<unk>", "<0x61>", "\n<s>\n"])
def test_a_prompt_cannot_spell_a_special_token(text: str, tmp_path: Path) -> None:
    """Row 56: it is encoded as the characters that it consists of."""
    lay_out(tmp_path)
    ids = [int(word) for word in tokenize(tmp_path, text).split()]
    assert ids[0] == 1
    assert not {0, 1, 2} & set(ids[1:])
    assert len(ids) == len(text) + 2


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_a_tiny_top_p_keeps_the_most_likely_token(seed: str, tmp_path: Path) -> None:
    """Row 60: below any one probability, top-p is greedy."""
    lay_out(tmp_path)
    greedy = in_process((*GENERATE, *PROMPT), tmp_path)
    argv = (*GENERATE, *PROMPT, "--temperature", "1", "--top-p", "1e-9", "--seed", seed)
    assert in_process(argv, tmp_path).out == greedy.out


def test_beyond_the_context_it_stops_and_says_so(tmp_path: Path) -> None:
    """Row 61: as many tokens as there are positions, and a line about it."""
    lay_out(tmp_path)
    argv = (*GENERATE, "--max-new-tokens", "1000", "--ignore-eos", *PROMPT)
    outcome = in_process(argv, tmp_path)
    S = SHAPE["seq_len"]
    assert outcome.code == 0
    assert f"pyllm2: the context of {S} tokens is full: stopped after".encode() in outcome.err


@pytest.mark.parametrize("seed", ["0", "1", str(2**64 - 1)])
def test_every_seed_of_the_range_is_one_fixed_story(seed: str, tmp_path: Path) -> None:
    """Row 62: also 0, which means no clock, and the largest."""
    lay_out(tmp_path)
    argv = (*GENERATE, *PROMPT, "--temperature", "1", "--seed", seed)
    first, second = in_process(argv, tmp_path), in_process(argv, tmp_path)
    assert (first.code, first.out) == (0, second.out)
    assert f"seed {seed},".encode() in first.err


def test_an_absurd_context_costs_only_what_is_used(tmp_path: Path) -> None:
    """Rows 10 and 76: v1 has no tables of that length; a cache of it is refused in one line."""
    huge = patched(1, seq_len=INT_MAX)
    good = outcome_with(tmp_path, (*GENERATE, *PROMPT))
    assert outcome_with(tmp_path, (*GENERATE, *PROMPT), m=huge).out == good.out
    refused = outcome_with(tmp_path, (*CHAT, "--prompt", "b"), m=huge)
    # per position: 2 layers of 4 keys and 4 values in float32, and the tables with temporaries
    needed = f"needs {INT_MAX * (2 * 8 * 4 + 16 * 2) / 1e6:,.0f} MB for the key/value cache"
    assert (refused.code, refused.out) == (1, b"")
    assert refused.err.decode().startswith(f"pyllm2: error: {needed} of {INT_MAX} positions")
    assert refused.err.count(b"\n") == 1
