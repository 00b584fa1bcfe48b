"""`pyllm2 chat`: turns, the end of input, a full context."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyllm2.cli import loading
from tests.support.command import in_process
from tests.support.llama2_files import byte_id, lay_out, saying

CHAT = ("chat", "m.bin", "--tokenizer", "t.bin", "--backend", "numpy", "--temperature", "0")
TURN = b"Assistant: yo\nUser: "


def folder_that_says_yo(tmp_path: Path, seq_len: int = 200) -> Path:
    """A model that answers every message (they end in a bracket) with `yo` and EOS."""
    lay_out(tmp_path, {"m.bin": saying(b"yo", after=byte_id(ord("]")), seq_len=seq_len)})
    return tmp_path


def test_every_line_is_answered_and_the_end_of_input_ends_it(tmp_path: Path) -> None:
    """Three messages, three replies, exit code 0; an empty line does nothing."""
    outcome = in_process(CHAT, folder_that_says_yo(tmp_path), b"hi\nthere\n \n\nyou\n")
    assert outcome.code == 0
    assert outcome.out == b"User: " + 2 * TURN + 2 * b"User: " + TURN + b"\n"
    assert outcome.err.count(b"backend numpy") == 3


def test_the_end_of_input_at_once_is_a_clean_end(tmp_path: Path) -> None:
    """Without a message there is no reply, and no line about speed."""
    outcome = in_process(CHAT, folder_that_says_yo(tmp_path))
    assert (outcome.code, outcome.out, outcome.err) == (0, b"User: \n", b"")


def test_the_first_message_may_be_a_flag(tmp_path: Path) -> None:
    """The other messages come from stdin; the last line needs no newline."""
    argv = (*CHAT, "--prompt", "hi", "--system", "be brief")
    outcome = in_process(argv, folder_that_says_yo(tmp_path), b"there")
    assert (outcome.code, outcome.out) == (0, 2 * TURN + b"\n")


def test_a_full_context_is_said_and_the_oldest_messages_go(tmp_path: Path) -> None:
    """Before it happens, and when it does; the conversation goes on."""
    folder = folder_that_says_yo(tmp_path, seq_len=64)
    outcome = in_process((*CHAT, "--max-new-tokens", "3"), folder, b"hi\nhi\nhi\nhi\n")
    assert (outcome.code, outcome.out) == (0, b"User: " + 4 * TURN + b"\n")
    lines = [line for line in outcome.err.decode().splitlines() if "backend" not in line]
    assert re.fullmatch(
        r"pyllm2: room for \d\d more tokens in the context of 64: after that the oldest messages "
        r"are left out \(/reset begins anew\)",
        lines[0],
    )
    assert lines[1] == (
        "pyllm2: the context is full: the model does not see the first 2 messages any more"
    )


def test_a_message_beyond_the_context_is_refused(tmp_path: Path) -> None:
    """After the replies to those before it."""
    folder = folder_that_says_yo(tmp_path, seq_len=50)
    outcome = in_process(CHAT, folder, b"hi\n" + b"x" * 45 + b"\n")
    assert (outcome.code, outcome.out) == (1, b"User: " + TURN)
    assert outcome.err.endswith(b"pyllm2: error: prompt is 62 tokens, context is 50\n")


def test_commands_begin_with_a_slash(tmp_path: Path) -> None:
    """/reset, /system, /save, /quit; two slashes send one; a mistake is told."""
    script = b"hi\n/save a.json\n/save a.json\n/save m.bin\n/save\n/nonsense\n//hi\n"
    script += b"/system be brief\n/reset\n/save b.json\n/system\n/save b.json\n/help\n/quit\nhi\n"
    outcome = in_process(CHAT, folder_that_says_yo(tmp_path), script)
    assert outcome.code == 0
    assert outcome.out.count(b"Assistant: yo\n") == 2
    assert json.loads((tmp_path / "a.json").read_text()) == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
    ]
    assert json.loads((tmp_path / "b.json").read_text()) == []
    said = outcome.err.decode()
    assert "pyllm2: m.bin: already exists: choose another name\n" in said
    assert "pyllm2: /save FILE: the name of the file is missing\n" in said
    assert "pyllm2: unknown command /nonsense: /help shows all" in said
    assert "1 messages written to b.json\n" in said


def test_a_turn_feeds_what_is_new(tmp_path: Path) -> None:
    """The second prompt is the message and the end of the reply, not the whole conversation."""
    outcome = in_process(CHAT, folder_that_says_yo(tmp_path), b"hi\nhi\n/reset\nhi\n")
    prompts = re.findall(r"prompt (\d+) tokens", outcome.err.decode())
    assert prompts[1] == str(int(prompts[0]) + 1)  # and EOS, which ended the reply
    assert prompts[2] == "1"  # the same beginning is in the cache


def test_stop_texts_end_a_reply(tmp_path: Path) -> None:
    """--stop may be given twice."""
    argv = (*CHAT, "--stop", "no", "--stop", "o")
    outcome = in_process(argv, folder_that_says_yo(tmp_path), b"hi\n")
    assert outcome.out == b"User: Assistant: y\nUser: \n"


def test_a_template_may_be_named(tmp_path: Path) -> None:
    """A file, or a name; an unknown one lists them."""
    folder = folder_that_says_yo(tmp_path)
    (folder / "own.jinja").write_text("{{ messages[-1].content }}]")
    outcome = in_process((*CHAT, "--chat-template", "own.jinja"), folder, b"hi\n")
    assert outcome.out == b"User: " + TURN + b"\n"
    assert b"prompt 4 tokens" in outcome.err or b"prompt 3 tokens" in outcome.err
    assert in_process((*CHAT, "--chat-template", "llama2"), folder, b"hi\n").out == outcome.out
    outcome = in_process((*CHAT, "--chat-template", "none"), folder, b"hi\n")
    assert (outcome.code, outcome.out) == (2, b"")
    assert b"none: no such file or name; names are llama2, llama3, chatml" in outcome.err
    (folder / "bad.jinja").write_text("{{ raise_exception('never') }}")
    outcome = in_process((*CHAT, "--chat-template", "bad.jinja"), folder, b"hi\n")
    assert outcome.err == b"pyllm2: error: bad.jinja: chat template: never\n"


def test_a_seed_fixes_the_conversation(tmp_path: Path) -> None:
    """The same seed and messages give the same bytes."""
    lay_out(tmp_path)
    argv = (*CHAT, "--temperature", "1", "--max-new-tokens", "4", "--seed")
    one, again, other = (in_process((*argv, s), tmp_path, b"a\n").out for s in ("1", "1", "2"))
    assert one == again
    assert one != other


def test_a_context_that_the_memory_cannot_hold_is_shortened(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By halves, not below 2,048, with a line that says so; --context is taken as it is."""
    nbytes = SimpleNamespace(cache_nbytes=lambda positions: 1000 * positions)
    model: Any = SimpleNamespace(config=SimpleNamespace(seq_len=131072), model=nbytes)
    monkeypatch.setattr(loading.memory, "limit", lambda: 4 * 20_000_000)
    assert loading.context_length(argparse.Namespace(context=None), model) == 16384
    assert "context of 16384 tokens, as the memory allows" in capsys.readouterr().err
    monkeypatch.setattr(loading.memory, "limit", lambda: 0)
    assert loading.context_length(argparse.Namespace(context=None), model) == 2048
    assert loading.context_length(argparse.Namespace(context=131072), model) == 131072
