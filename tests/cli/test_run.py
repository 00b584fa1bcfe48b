"""`pyllm2 run` without golden files: the original's command line, generation and chat."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import in_process
from tests.support.llama2_files import byte_id, lay_out, saying

RUN = ("run", "m.bin", "-z", "t.bin", "--backend", "numpy", "-t", "0")


@pytest.mark.parametrize(
    "argv",
    [
        *("", "m.bin -z", "m.bin x 1", "m.bin -temp 1", "m.bin - 1", "m.bin -q 1"),
        *("no.bin -t", "m.bin -z t.bin -m sing"),
    ],
)
def test_misuse_is_answered_with_the_usage(argv: str, tmp_path: Path) -> None:
    """Exit code 1 as in the original, the usage text, and the reason in the last line."""
    lay_out(tmp_path)
    outcome = in_process(("run", *argv.split()), tmp_path)
    assert (outcome.code, outcome.out) == (1, b"")
    *usage, reason = outcome.err.splitlines()
    assert usage[0].startswith(b"usage: pyllm2 run MODEL")
    assert reason.startswith(b"pyllm2: error: ")


def test_the_last_of_repeated_flags_wins(tmp_path: Path) -> None:
    """A value may begin with a dash."""
    lay_out(tmp_path)
    twice = in_process((*RUN, "-i", "b", "-i", "-a"), tmp_path)
    assert twice.out == in_process((*RUN, "-i", "-a"), tmp_path).out
    assert twice.out.startswith(b"-a")


def test_numbers_are_rounded_to_float32_before_they_are_clamped(tmp_path: Path) -> None:
    """A top-p just above 1 is rounded to 1, which is in range, and not replaced by 0.9."""
    lay_out(tmp_path)
    hot = ("run", "m.bin", "-z", "t.bin", "--backend", "numpy", "-t", "50", "-s", "3", "-n", "12")
    one, above, default = (
        in_process((*hot, "-p", p), tmp_path).out for p in ("1", "1.00000001", "7")
    )
    assert above == one != default


def test_steps_count_the_prompt(tmp_path: Path) -> None:
    """Four steps print four tokens; stderr says that the prompt is cut."""
    lay_out(tmp_path)
    outcome = in_process((*RUN, "-n", "4", "-i", "bbbbbb"), tmp_path)
    assert (outcome.code, outcome.out) == (0, b"bbb\n")
    assert b"the prompt is 8 tokens, 4 steps: it is cut" in outcome.err


def test_a_byte_of_a_split_character_is_never_shown(tmp_path: Path) -> None:
    """The original prints no byte of a multi-byte character that is split into tokens."""
    lay_out(tmp_path, {"m.bin": saying("h\u20aci".encode())})
    assert in_process((*RUN, "-n", "5"), tmp_path).out == b"hi\n"


def test_a_long_line_of_a_chat_answers_twice(tmp_path: Path) -> None:
    """A line is read in parts of 511 bytes, the size of the original's buffer."""
    lay_out(tmp_path, {"m.bin": saying(b"y", after=byte_id(ord("]")), seq_len=2000)})
    argv = (*RUN, "-m", "chat", "-y", "", "-n", "1200")
    outcome = in_process(argv, tmp_path, b"b" * 600 + b"\n")
    turns = outcome.out.split(b"User: ")[1:]
    assert all(turn.startswith(b"Assistant: y\n") for turn in turns[:2])
    assert len(turns) >= 2


def test_the_end_of_input_before_the_first_text_ends_a_chat(tmp_path: Path) -> None:
    """Without any line there is none to repeat."""
    lay_out(tmp_path)
    outcome = in_process((*RUN, "-m", "chat"), tmp_path)
    question = b"Enter system prompt (optional): "
    assert (outcome.code, outcome.out) == (0, question + b"User: \n")
