"""Row 55: bytes that are no text pass through arguments, files and stdin."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.case import GENERATE
from tests.support.command import as_process, in_process
from tests.support.llama2_files import BOS, byte_id, lay_out

# NUL, a stray byte, an overlong form, a surrogate, a cut character
ODD = b"a\0b\xff\xc0\x80\xed\xa0\x80\xe2\x82"
ECHO_ONLY = (*GENERATE, "--max-new-tokens", "0", "--prompt-file")


@pytest.mark.parametrize("how", ["stdin", "file"])
def test_odd_bytes_of_a_prompt_are_echoed_unchanged(how: str, tmp_path: Path) -> None:
    """NUL and invalid UTF-8 from stdin and from a file."""
    lay_out(tmp_path, {"p.txt": ODD})
    argv = (*ECHO_ONLY, "-" if how == "stdin" else "p.txt")
    outcome = as_process(argv, tmp_path, stdin=ODD)
    assert (outcome.code, outcome.out) == (0, ODD + b"\n")


def test_invalid_utf8_in_an_argument_is_echoed_unchanged(tmp_path: Path) -> None:
    """Python decodes them to lone surrogates; the bytes of the user are printed."""
    lay_out(tmp_path)
    odd = ODD.replace(b"\0", b"")
    outcome = as_process((*GENERATE, "--max-new-tokens", "0", "--prompt", odd), tmp_path)
    assert (outcome.code, outcome.out) == (0, odd + b"\n")


def test_a_zero_byte_has_its_token(tmp_path: Path) -> None:
    """NUL is encoded as the byte token <0x00> and decoded again."""
    lay_out(tmp_path)
    tokenize = ("tokenize", "--tokenizer", "t.bin", "--text-file", "-")
    ids = in_process(tokenize, tmp_path, b"\0\xff").out
    assert ids.split()[-2:] == [b"%d" % byte_id(0), b"%d" % byte_id(255)]
    assert ids.startswith(b"%d " % BOS)
    assert in_process((*tokenize, "--decode"), tmp_path, ids).out == b"\0\xff"
