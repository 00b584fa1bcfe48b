"""`pyllm2 chat` on a terminal: editing, history, Ctrl-C, Ctrl-D."""

from __future__ import annotations

import ctypes
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import environment, interruptible, limited
from tests.support.llama2_files import BOS, byte_id, lay_out, saying, scripted

CHAT = ("chat", "m.bin", "--tokenizer", "t.bin", "--backend", "numpy", "--temperature", "0")
SECONDS = 120


class Terminal:
    """A chat on a pseudo-terminal: type, and wait for what appears."""

    def __init__(self, folder: Path, *flags: str, threads: int = 1) -> None:
        changes = {"TERM": "xterm", "INPUTRC": "/dev/null", "OPENBLAS_NUM_THREADS": str(threads)}
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            limited([*CHAT, *flags]),
            cwd=folder,
            env=environment(changes),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=interruptible,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = b""

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def wait_for(self, words: bytes) -> bytes:
        """What has appeared since the last call, up to these words."""
        deadline = time.monotonic() + SECONDS
        while words not in self.seen:
            ready, _, _ = select.select([self.master], [], [], deadline - time.monotonic())
            assert ready, self.seen
            try:
                self.seen += os.read(self.master, 4096)
            except OSError:
                raise AssertionError(self.seen) from None
        head, _, self.seen = self.seen.partition(words)
        return head

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def interrupt_thread(self) -> None:
        """SIGINT to a thread which is not the main thread, as a kernel may choose."""
        pid = self.process.pid
        other = next(n for n in map(int, os.listdir(f"/proc/{pid}/task")) if n != pid)
        assert ctypes.CDLL(None).tgkill(pid, other, signal.SIGINT) == 0

    def end(self) -> int:
        self.process.wait(SECONDS)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.master)


@pytest.fixture
def yo(tmp_path: Path) -> Iterator[Terminal]:
    """A chat with a model that answers every message with `yo`."""
    lay_out(tmp_path, {"m.bin": saying(b"yo", after=byte_id(ord("]")), seq_len=200)})
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


def test_lines_are_edited_and_remembered(yo: Terminal) -> None:
    """Left and backspace edit; up brings the last line back; Ctrl-D ends the chat."""
    yo.wait_for(b"User: ")
    yo.type(b"hx\x7fz\x1b[Di\x1b[C\x7f\n")  # hx, delete x, z, left, i, right, delete z
    yo.wait_for(b"Assistant: yo\r\n")
    yo.wait_for(b"User: ")
    yo.type(b"\x1b[A")
    yo.wait_for(b"hi")
    yo.type(b"\n")
    yo.wait_for(b"Assistant: yo\r\n")
    yo.wait_for(b"User: ")
    yo.type(b"\x04")
    assert yo.end() == 0


def test_ctrl_c_at_the_prompt_does_not_end_the_chat(yo: Terminal) -> None:
    """It drops the line."""
    yo.wait_for(b"User: ")
    yo.type(b"drop me")
    yo.wait_for(b"drop me")
    yo.interrupt()
    yo.wait_for(b"/quit or Ctrl-D ends the chat")
    yo.wait_for(b"User: ")
    yo.type(b"hi\n")
    yo.wait_for(b"Assistant: yo\r\n")
    yo.wait_for(b"User: ")
    yo.type(b"/quit\n")
    assert yo.end() == 0


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "tgkill"), reason="needs tgkill: Linux")
def test_ctrl_c_may_reach_any_thread(tmp_path: Path) -> None:
    """The wait for a key ends also where another thread, here one of the BLAS, takes the signal."""
    lay_out(tmp_path, {"m.bin": saying(b"yo", after=byte_id(ord("]")), seq_len=200)})
    terminal = Terminal(tmp_path, threads=2)
    try:
        terminal.wait_for(b"User: ")
        terminal.interrupt_thread()
        terminal.wait_for(b"/quit or Ctrl-D ends the chat")
        terminal.wait_for(b"User: ")
    finally:
        terminal.close()


def test_ctrl_c_ends_the_answer_and_not_the_chat(tmp_path: Path) -> None:
    """What has been said is part of the conversation; /save writes it."""
    a, b = byte_id(ord("a")), byte_id(ord("b"))
    endless = scripted(((BOS, a), (byte_id(ord("]")), a), (a, b), (b, a)), seq_len=20_000)
    lay_out(tmp_path, {"m.bin": endless})
    terminal = Terminal(tmp_path, "--max-new-tokens", "20000")
    try:
        terminal.wait_for(b"User: ")
        terminal.type(b"hi\n")
        terminal.wait_for(b"Assistant: abab")
        terminal.interrupt()
        terminal.wait_for(b"the answer was interrupted")
        terminal.wait_for(b"User: ")
        terminal.type(b"/save c.json\n")
        terminal.wait_for(b"2 messages written to c.json")
        terminal.type(b"/quit\n")
        assert terminal.end() == 0
    finally:
        terminal.close()
    assert '"content": "abab' in (tmp_path / "c.json").read_text()
