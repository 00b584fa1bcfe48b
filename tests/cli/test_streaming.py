"""Text is printed as it is made, in complete characters; only text goes to stdout."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.cli.output import Output
from tests.support.command import TIMEOUT, in_process, start
from tests.support.llama2_files import BOS, byte_id, lay_out, saying, scripted
from tests.support.profiles import few

FILES = ("m.bin", "--tokenizer", "t.bin", "--backend", "numpy", "--temperature", "0")


class Recorder:
    """A stdout that records every write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.buffer = self

    def write(self, data: bytes) -> None:
        if data:
            self.writes.append(bytes(data))

    def flush(self) -> None:
        """Nothing is buffered."""

    def isatty(self) -> bool:
        return False


def written(chunks: list[bytes]) -> list[bytes]:
    """The writes of an `Output` that is given these chunks."""
    recorder, before = Recorder(), sys.stdout
    sys.stdout = recorder  # type: ignore[assignment]
    try:
        output = Output()
        for chunk in chunks:
            output.write(chunk)
        output.write(b"", end=True)
    finally:
        sys.stdout = before
    return recorder.writes


@few()
@given(st.text(max_size=12), st.data())
def test_a_character_is_never_split_over_two_writes(text: str, data: st.DataObject) -> None:
    """However the bytes are cut, every write is complete characters, and none is lost."""
    whole = text.encode(errors="replace")
    ends = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[a:b] for a, b in zip([0, *ends], [*ends, len(whole)], strict=True)]
    writes = written(pieces)
    assert b"".join(writes) == whole
    for write in writes:
        write.decode("utf-8")  # raises if a character is cut


@given(st.lists(st.binary(max_size=5), max_size=8))
def test_no_byte_is_lost_or_changed(chunks: list[bytes]) -> None:
    """Invalid UTF-8 is written unchanged."""
    assert b"".join(written(chunks)) == b"".join(chunks)


def test_a_character_of_three_byte_tokens_is_one_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`generate` writes h, then the euro sign, then the newline."""
    from pyllm2 import cli

    lay_out(tmp_path, {"m.bin": saying("h\u20ac".encode())})
    recorder = Recorder()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", recorder)
    assert cli.main(["generate", *FILES]) == 0
    assert recorder.writes == [b"h", "\u20ac".encode(), b"\n"]


@pytest.mark.parametrize("command", ["generate", "chat", "run"])
def test_bytes_arrive_before_the_process_ends(command: str, tmp_path: Path) -> None:
    """The beginning of a text of a million tokens can be read at once."""
    a, b = byte_id(ord("a")), byte_id(ord("b"))
    follows = ((BOS, a), (a, b), (b, a), (byte_id(ord("]")), a))
    lay_out(tmp_path, {"m.bin": scripted(follows, seq_len=10**6)})
    argv = {
        "generate": ("generate", *FILES, "--max-new-tokens", "900000"),
        "chat": ("chat", *FILES, "--prompt", "a", "--max-new-tokens", "900000"),
        "run": ("run", "m.bin", "-z", "t.bin", "--backend", "numpy", "-t", "0", "-n", "900000"),
    }[command]
    expected = (b"Assistant: " if command == "chat" else b"") + b"abab"
    process = start(argv, tmp_path)
    assert process.stdout is not None
    seen = b""
    while len(seen) < len(expected):
        chunk = os.read(process.stdout.fileno(), len(expected) - len(seen))
        assert chunk, "it ended"
        seen += chunk
    running = process.poll() is None
    process.kill()
    process.communicate(timeout=TIMEOUT)
    assert (seen, running) == (expected, True)


def test_stdout_is_only_text_and_stderr_says_the_rest(tmp_path: Path) -> None:
    """Backend, seed, counts and speed are on stderr."""
    lay_out(tmp_path, {"m.bin": saying(b"hello"[:3])})
    outcome = in_process(["generate", *FILES, "--seed", "77"], tmp_path)
    assert outcome.out == b"hel\n"
    report = outcome.err.decode()
    assert report.count("\n") == 1
    for words in ("backend numpy", "seed 77", "prompt 1 tokens", "3 new tokens", "tokens/s"):
        assert words in report
