"""`pyllm2 generate`: sources of the prompt, output, seeds, stopping, errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pyllm2.gpt2 import family as gpt2
from tests.hostile.folder_files import TOKENIZER
from tests.support.command import in_process
from tests.support.llama2_files import (
    BOS,
    EOS,
    byte_id,
    checkpoint,
    lay_out,
    saying,
    scripted,
    vocabulary,
)

FILES = ("m.bin", "--tokenizer", "t.bin", "--backend", "numpy")
GREEDY = ("generate", *FILES, "--temperature", "0", "--max-new-tokens", "5")
PROMPT = "a cab \u20ac"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a random model, its tokenizer and a prompt."""
    lay_out(tmp_path, {"p.txt": PROMPT.encode()})
    return tmp_path


def test_a_prompt_is_the_same_from_flag_file_and_stdin(folder: Path) -> None:
    """The output is the same for a prompt from the flag, a file and stdin."""
    flag = in_process([*GREEDY, "--prompt", PROMPT], folder)
    file = in_process([*GREEDY, "--prompt-file", "p.txt"], folder)
    stdin = in_process([*GREEDY, "--prompt-file", "-"], folder, PROMPT.encode())
    assert flag.code == file.code == stdin.code == 0
    assert flag.out == file.out == stdin.out
    assert flag.out.startswith(PROMPT.encode())


def test_no_echo_prints_only_what_is_new(folder: Path) -> None:
    """With the echo, the output begins with the bytes of the prompt."""
    echo = in_process([*GREEDY, "--prompt", PROMPT], folder)
    silent = in_process([*GREEDY, "--prompt", PROMPT, "--no-echo"], folder)
    assert echo.out == PROMPT.encode() + silent.out
    assert len(silent.out) > 1


def test_a_seed_fixes_the_text_and_another_changes_it(folder: Path) -> None:
    """The same seed gives the same bytes, another seed gives others."""
    sampled = ["generate", *FILES, "--prompt", "a", "--seed"]
    first, again, other = (in_process([*sampled, seed], folder).out for seed in ("5", "5", "6"))
    assert first == again
    assert first != other


def test_the_seed_that_was_drawn_can_be_used_again(folder: Path) -> None:
    """Without --seed stderr names a new seed, which gives the same text again."""
    drawn = in_process(["generate", *FILES, "--prompt", "a"], folder)
    seed = re.search(rb"seed (\d+)", drawn.err)
    assert seed is not None
    again = in_process(["generate", *FILES, "--prompt", "a", "--seed", seed[1]], folder)
    assert again.out == drawn.out


@pytest.mark.parametrize("n", [0, 1, 3])
def test_it_makes_no_more_tokens_than_asked_for(n: int, tmp_path: Path) -> None:
    """The model itself would stop after five."""
    lay_out(tmp_path, {"m.bin": saying(b"hijkl")})
    outcome = in_process([*GREEDY, "--max-new-tokens", str(n)], tmp_path)
    assert outcome.out == b"hijkl"[:n] + b"\n"


def test_end_of_text_ends_it_unless_ignored(tmp_path: Path) -> None:
    """EOS ends the text and is not printed."""
    h, i = byte_id(ord("h")), byte_id(ord("i"))
    lay_out(tmp_path, {"m.bin": scripted(((1, h), (h, EOS), (EOS, i)))})
    assert in_process(GREEDY, tmp_path).out == b"h\n"
    assert in_process([*GREEDY, "--ignore-eos", "--max-new-tokens", "3"], tmp_path).out == b"hi\n"


def test_less_context_ends_it_earlier(tmp_path: Path) -> None:
    """stderr says that the context is full."""
    lay_out(tmp_path, {"m.bin": saying(b"hijkl")})
    outcome = in_process([*GREEDY, "--context", "2"], tmp_path)
    assert outcome.out == b"hi\n"
    assert b"pyllm2: the context of 2 tokens is full: stopped after 2 new tokens\n" in outcome.err


def test_mapped_weights_say_the_same(folder: Path) -> None:
    """--mmap does not change the text."""
    argv = [*GREEDY, "--prompt", PROMPT]
    assert in_process([*argv, "--mmap"], folder).out == in_process(argv, folder).out


def test_the_tokenizer_is_found_beside_the_model_then_here(folder: Path) -> None:
    """The default is tokenizer.bin, beside the model or in the current folder."""
    argv = ["generate", "sub/m.bin", "--backend", "numpy", "--temperature", "0"]
    (folder / "sub").mkdir()
    (folder / "sub" / "m.bin").write_bytes(checkpoint())
    assert in_process(argv, folder).code == 1
    (folder / "tokenizer.bin").write_bytes(vocabulary())
    here = in_process(argv, folder)
    assert here.code == 0
    (folder / "tokenizer.bin").rename(folder / "sub" / "tokenizer.bin")
    assert in_process(argv, folder).out == here.out


def test_a_warning_is_one_line_whatever_the_name(folder: Path) -> None:
    """A newline in a file name is escaped."""
    (folder / "t\n\x1b.bin").write_bytes(b"\xff" + vocabulary()[1:])
    argv = ["generate", "m.bin", "--tokenizer", "t\n\x1b.bin", "--backend", "numpy"]
    outcome = in_process(argv, folder)
    assert outcome.code == 0
    first = outcome.err.splitlines()[0]
    assert first == b"pyllm2: warning: t\\n\\x1b.bin: max_token_length = 255 (byte 0): it is 6"


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (None, "no such file or directory"),
        (b"# A model\n\nIt tells stories.\n", "looks like plain text"),
        (b"GGUF" + bytes(200), "version = 0 (byte 4): 2 and 3 are supported"),
        (b"PK\x03\x04" + bytes(200), "looks like a zip archive (a PyTorch checkpoint is one: "),
    ],
    ids=["absent", "readme", "gguf", "pt"],
)
def test_the_model_is_looked_at_before_its_tokenizer(
    data: bytes | None, error: str, tmp_path: Path
) -> None:
    """There is no tokenizer.bin either, but the error is about the model."""
    if data is not None:
        (tmp_path / "model").write_bytes(data)
    outcome = in_process(["generate", "model"], tmp_path)
    assert outcome.code == 1
    assert outcome.err.decode().startswith(f"pyllm2: error: model: {error}")
    folder = in_process(["generate", "."], tmp_path)
    assert folder.err.startswith(b"pyllm2: error: .: is a folder, without config.json (Hugging")


def test_gpt2_is_generated_from_and_mapped_too(tmp_path: Path) -> None:
    """GPT-2: --mmap does not change the text, and `chat` refuses the file by its kind."""
    config = gpt2.descriptor("layers=1,heads=2,channels=8,context=16", 257)
    gpt2.save_parameters(tmp_path / "g.bin", config, gpt2.initial_parameters(config))
    argv = ["g.bin", "--tokenizer", "bytes", "--backend", "numpy", "--max-new-tokens", "5"]
    read, mapped = (
        in_process(["generate", *argv, "--temperature", "0", *flag], tmp_path)
        for flag in ([], ["--mmap"])
    )
    assert read.code == 0
    assert len(read.out) == 6
    assert mapped.out == read.out
    chat = in_process(["chat", *argv], tmp_path)
    assert chat.err.startswith(b"pyllm2: error: g.bin: chat template: there is none")


def test_an_empty_prompt_needs_a_token_that_begins_a_text(tmp_path: Path) -> None:
    """As Qwen and GPT-2 have none: wrong usage, in one line, however it is empty."""
    pytest.importorskip("regex")
    config = gpt2.descriptor("layers=1,heads=2,channels=8,context=16", 257)
    gpt2.save_parameters(tmp_path / "g.bin", config, gpt2.initial_parameters(config))
    (tmp_path / "t.json").write_text(json.dumps(TOKENIZER))
    (tmp_path / "empty").touch()
    argv = ["generate", "g.bin", "--tokenizer", "t.json", "--backend", "numpy"]
    for flags in ([], ["--prompt", ""], ["--prompt-file", "empty"]):
        outcome = in_process([*argv, *flags], tmp_path)
        assert (outcome.code, outcome.out) == (2, b"")
        assert outcome.err.startswith(b"pyllm2: error: the prompt is empty, and no token begins")
    assert in_process([*argv, "--prompt", "a"], tmp_path).code == 0


def test_json_has_ids_text_and_logprobs(tmp_path: Path) -> None:
    """One object; --stop ends the text, --chat and --messages send messages."""
    lay_out(tmp_path, {"m.bin": saying(b"yo", after=byte_id(ord("]")), seq_len=99)})
    argv = ["generate", "m.bin", "--tokenizer", "t.bin", "--backend", "numpy", "--temperature", "0"]
    (tmp_path / "c.json").write_text('[{"role": "user", "content": "hi"}]')
    (tmp_path / "bad.json").write_text('{"messages": 1}')
    one = in_process([*argv, "--chat", "--prompt", "hi", "--json"], tmp_path)
    found = json.loads(one.out)
    assert (found["text"], found["finish_reason"], found["stopped_by"]) == ("yo", "stop", 2)
    assert len(found["ids"]) == len(found["logprobs"]) == 2
    assert all(logprob < 0 for logprob in found["logprobs"])
    two = in_process([*argv, "--messages", "c.json"], tmp_path)
    assert (two.code, two.out) == (0, b"yo\n")
    assert in_process([*argv, "--messages", "c.json", "--stop", "o"], tmp_path).out == b"y\n"
    empty = in_process([*argv, "--stop", ""], tmp_path)
    assert empty.code == 2
    assert empty.err.startswith(b"pyllm2: error: --stop: '': expected a text that is not empty")
    bad = in_process([*argv, "--messages", "bad.json"], tmp_path)
    assert (bad.code, bad.err.count(b"\n")) == (1, 1)


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        (EOS, "the model ended the text at once; --ignore-eos goes on\n"),
        (BOS, "the model ended the text at once\n"),
    ],
)
def test_a_text_that_ends_at_once_is_said(stop: int, said: str, tmp_path: Path) -> None:
    """With the flag that goes on, where there is one."""
    lay_out(tmp_path, {"m.bin": scripted(((BOS, stop), (EOS, EOS)))})
    outcome = in_process(GREEDY, tmp_path)
    assert outcome.code == 0
    assert said in outcome.err.decode()
    lay_out(tmp_path, {"m.bin": saying(b"a")})
    assert b"at once" not in in_process(GREEDY, tmp_path).err
