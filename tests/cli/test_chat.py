"""`pyllm2 chat`: turns, the end of input, the end of the context."""

from __future__ import annotations

from pathlib import Path

from .program import in_process
from .tiny import byte_id, lay_out, saying

CHAT = ("chat", "m.bin", "--tokenizer", "t.bin", "--backend", "numpy", "--temperature", "0")
TURN = b"Assistant: yo\nUser: "


def folder_that_says_yo(tmp_path: Path, seq_len: int = 200) -> Path:
    """Its model answers each message, which ends in a bracket, with `yo` and ends the turn."""
    lay_out(tmp_path, {"m.bin": saying(b"yo", after=byte_id(ord("]")), seq_len=seq_len)})
    return tmp_path


def test_every_line_is_answered_and_the_end_of_input_ends_it(tmp_path: Path) -> None:
    """Three messages, three replies, exit code 0."""
    outcome = in_process(CHAT, folder_that_says_yo(tmp_path), b"hi\nthere\n\n")
    assert (outcome.code, outcome.out) == (0, b"User: " + 3 * TURN + b"\n")
    assert outcome.err.count(b"backend numpy") == 3


def test_the_end_of_input_at_once_is_a_clean_end(tmp_path: Path) -> None:
    """Nothing was asked, nothing is answered."""
    outcome = in_process(CHAT, folder_that_says_yo(tmp_path))
    assert (outcome.code, outcome.out, outcome.err) == (0, b"User: \n", b"")


def test_the_first_message_may_be_a_flag(tmp_path: Path) -> None:
    """The rest come from stdin; a last line needs no newline."""
    argv = (*CHAT, "--prompt", "hi", "--system", "be brief")
    outcome = in_process(argv, folder_that_says_yo(tmp_path), b"there")
    assert (outcome.code, outcome.out) == (0, 2 * TURN + b"\n")


def test_a_full_context_ends_it_and_is_said(tmp_path: Path) -> None:
    """Room for two turns: the third message ends the conversation, exit code 0."""
    outcome = in_process(CHAT, folder_that_says_yo(tmp_path, seq_len=50), b"hi\nhi\nhi\nhi\n")
    assert outcome.code == 0
    assert outcome.out == b"User: " + 2 * TURN
    assert outcome.err.endswith(
        b"pyllm2: the context of 50 tokens is full: the conversation ends\n"
    )


def test_a_seed_fixes_the_conversation(tmp_path: Path) -> None:
    """The same seed and messages, the same bytes."""
    lay_out(tmp_path)
    argv = (*CHAT, "--temperature", "1", "--max-new-tokens", "4", "--seed")
    one, again, other = (in_process((*argv, s), tmp_path, b"a\n").out for s in ("1", "1", "2"))
    assert one == again
    assert one != other
