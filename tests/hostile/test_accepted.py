"""Rows of the table that are accepted, with or without a warning."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.case import CHAT, GENERATE, RUN
from tests.hostile.model_files import INT_MAX, SIZE, patched, too_short, v0_sizes
from tests.hostile.tokenizer_files import GOOD
from tests.support.command import Outcome, in_process
from tests.support.llama2_files import PIECES, SCORES, SHAPE, V, checkpoint, lay_out, vocabulary

PROMPT = ("--prompt", "a cab")


def outcome_with(folder: Path, argv: tuple[str, ...], **files: bytes) -> Outcome:
    """The command's outcome with m.bin (m=…) or t.bin (t=…) replaced."""
    lay_out(folder, {f"{name}.bin": data for name, data in files.items()})
    return in_process(argv, folder)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("argv", [(*GENERATE, *PROMPT), RUN], ids=["generate", "run"])
def test_v1_says_what_v0_says(argv: tuple[str, ...], shared: bool, tmp_path: Path) -> None:
    """Row 4: a v1 file is recognised by its magic number and is the same model."""
    v0 = outcome_with(tmp_path, argv, m=checkpoint(0, shared))
    v1 = outcome_with(tmp_path, argv, m=checkpoint(1, shared))
    assert (v1.code, v1.out) == (0, v0.out)


CUT = SIZE - v0_sizes(SHAPE)["rope_sin"] - 1
UNUSED = too_short(CUT, SHAPE).removesuffix(": download incomplete?")


IGNORED = f"m.bin: 4 bytes after the last tensor (which ends at byte {SIZE}): ignored"
NOT_USED = f"m.bin: {UNUSED}: continuing, these tables are not used"


@pytest.mark.parametrize(
    ("model", "tokenizer", "warning"),
    [
        (checkpoint() + b"1234", GOOD, IGNORED),
        (checkpoint()[:CUT], GOOD, NOT_USED),
        (checkpoint(), GOOD + b"abc", None),
        (checkpoint(), b"\xff" + GOOD[1:], None),
    ],
    ids=["3-trailing-bytes", "2-rope-cut", "20-tokenizer-trailing-bytes", "22-longest-piece"],
)
def test_run_plays_what_the_original_plays(
    model: bytes, tokenizer: bytes, warning: str | None, tmp_path: Path
) -> None:
    """Faults that the original does not notice change no byte on stdout."""
    good = outcome_with(tmp_path, RUN)
    odd = outcome_with(tmp_path, RUN, m=model, t=tokenizer)
    assert (odd.code, odd.out) == (0, good.out)
    said = [line for line in odd.err.decode().splitlines() if "warning" in line]
    assert said == ([f"pyllm2: warning: {warning}"] if warning else [])


@pytest.mark.parametrize("declared", [0, 5, 999, 2**32 - 1])
def test_a_false_longest_piece_is_a_warning(declared: int, tmp_path: Path) -> None:
    """Row 22: the length is computed, the text is the same, and a warning gives both lengths."""
    good = outcome_with(tmp_path, (*GENERATE, *PROMPT))
    lie = outcome_with(tmp_path, (*GENERATE, *PROMPT), t=declared.to_bytes(4, "little") + GOOD[4:])
    assert (lie.code, lie.out) == (0, good.out)
    warning = f"pyllm2: warning: t.bin: max_token_length = {declared} (byte 0): it is 6"
    assert lie.err.decode().splitlines()[0] == warning


def test_more_tokens_than_the_model_knows_is_a_warning(tmp_path: Path) -> None:
    """Row 23: the first V tokens are used, as in the original, with a warning."""
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
    """Row 26: tokens are bytes, and NUL is one of them."""
    lay_out(tmp_path, {"t.bin": vocabulary([*PIECES, b"a\0b"])})
    assert tokenize(tmp_path, "--decode", str(V)) == b"a\0b"


@pytest.mark.parametrize("prompt", ["", " ", "     "])
def test_a_prompt_may_be_empty_or_only_spaces(prompt: str, tmp_path: Path) -> None:
    """Row 52: an empty prompt is BOS alone; spaces are text and are echoed."""
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
    """Row 54: messages of 600 bytes, which overflow a buffer of the original."""
    outcome = outcome_with(tmp_path, argv, m=checkpoint(seq_len=4000))
    assert outcome.code == 0
    assert outcome.out.startswith(b"Assistant: ")
    assert b"error" not in outcome.err


@pytest.mark.parametrize("text", ["<s>", "</s>", "<unk>", "<0x61>", "\n<s>\n"])
def test_a_prompt_cannot_spell_a_special_token(text: str, tmp_path: Path) -> None:
    """Row 56: it is encoded as its characters."""
    lay_out(tmp_path)
    ids = [int(word) for word in tokenize(tmp_path, text).split()]
    assert ids[0] == 1
    assert not {0, 1, 2} & set(ids[1:])
    assert len(ids) == len(text) + 2


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_a_tiny_top_p_keeps_the_most_likely_token(seed: str, tmp_path: Path) -> None:
    """Row 60: top-p below the largest probability is greedy."""
    lay_out(tmp_path)
    greedy = in_process((*GENERATE, *PROMPT), tmp_path)
    argv = (*GENERATE, *PROMPT, "--temperature", "1", "--top-p", "1e-9", "--seed", seed)
    assert in_process(argv, tmp_path).out == greedy.out


def test_beyond_the_context_it_stops_and_says_so(tmp_path: Path) -> None:
    """Row 61: it generates until the context is full and says so."""
    lay_out(tmp_path)
    argv = (*GENERATE, "--max-new-tokens", "1000", "--ignore-eos", *PROMPT)
    outcome = in_process(argv, tmp_path)
    S = SHAPE["seq_len"]
    assert outcome.code == 0
    assert f"pyllm2: the context of {S} tokens is full: stopped after".encode() in outcome.err


@pytest.mark.parametrize("seed", ["0", "1", str(2**64 - 1)])
def test_every_seed_of_the_range_is_one_fixed_story(seed: str, tmp_path: Path) -> None:
    """Row 62: 0, which does not mean the clock, and the largest seed too."""
    lay_out(tmp_path)
    argv = (*GENERATE, *PROMPT, "--temperature", "1", "--seed", seed)
    first, second = in_process(argv, tmp_path), in_process(argv, tmp_path)
    assert (first.code, first.out) == (0, second.out)
    assert f"seed {seed},".encode() in first.err


def test_an_absurd_context_costs_only_what_is_used(tmp_path: Path) -> None:
    """Rows 10 and 76: v1 stores no tables of that length; a chat takes what the memory holds.

    A cache of the whole context, asked for by name, is refused in one line.
    """
    huge = patched(1, seq_len=INT_MAX)
    good = outcome_with(tmp_path, (*GENERATE, *PROMPT))
    assert outcome_with(tmp_path, (*GENERATE, *PROMPT), m=huge).out == good.out
    chat = (*CHAT, "--prompt", "b")
    assert f"the model has {INT_MAX}" in outcome_with(tmp_path, chat, m=huge).err.decode()
    refused = outcome_with(tmp_path, (*chat, "--context", str(INT_MAX)), m=huge)
    # per position: 2 layers of 4 keys and 4 values in float32, and the tables with temporaries
    needed = f"needs {INT_MAX * (2 * 8 * 4 + 16 * 2) / 1e6:,.0f} MB for the key/value cache"
    assert (refused.code, refused.out) == (1, b"")
    assert refused.err.decode().startswith(f"pyllm2: error: {needed} of {INT_MAX} positions")
    assert refused.err.count(b"\n") == 1
