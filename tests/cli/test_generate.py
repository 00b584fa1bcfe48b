"""`pyllm2 generate`: where a prompt comes from, what is printed, what a seed fixes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .program import in_process
from .tiny import EOS, byte_id, checkpoint, lay_out, saying, scripted, vocabulary

FILES = ("m.bin", "--tokenizer", "t.bin", "--backend", "numpy")
GREEDY = ("generate", *FILES, "--temperature", "0", "--max-new-tokens", "5")
PROMPT = "a cab \u20ac"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a random model, its vocabulary and a prompt."""
    lay_out(tmp_path, {"p.txt": PROMPT.encode()})
    return tmp_path


def test_a_prompt_is_the_same_from_flag_file_and_stdin(folder: Path) -> None:
    """Not a byte depends on where it came from."""
    flag = in_process([*GREEDY, "--prompt", PROMPT], folder)
    file = in_process([*GREEDY, "--prompt-file", "p.txt"], folder)
    stdin = in_process([*GREEDY, "--prompt-file", "-"], folder, PROMPT.encode())
    assert flag.code == file.code == stdin.code == 0
    assert flag.out == file.out == stdin.out
    assert flag.out.startswith(PROMPT.encode())


def test_no_echo_prints_only_what_is_new(folder: Path) -> None:
    """The echo is the prompt, byte for byte, and nothing more."""
    echo = in_process([*GREEDY, "--prompt", PROMPT], folder)
    silent = in_process([*GREEDY, "--prompt", PROMPT, "--no-echo"], folder)
    assert echo.out == PROMPT.encode() + silent.out
    assert len(silent.out) > 1


def test_a_seed_fixes_the_text_and_another_changes_it(folder: Path) -> None:
    """The same seed, the same bytes."""
    sampled = ["generate", *FILES, "--prompt", "a", "--seed"]
    first, again, other = (in_process([*sampled, seed], folder).out for seed in ("5", "5", "6"))
    assert first == again
    assert first != other


def test_the_seed_that_was_drawn_can_be_used_again(folder: Path) -> None:
    """Without --seed a new one is drawn, and stderr says which."""
    drawn = in_process(["generate", *FILES, "--prompt", "a"], folder)
    seed = re.search(rb"seed (\d+)", drawn.err)
    assert seed is not None
    again = in_process(["generate", *FILES, "--prompt", "a", "--seed", seed[1]], folder)
    assert again.out == drawn.out


@pytest.mark.parametrize("n", [0, 1, 3])
def test_it_makes_no_more_tokens_than_asked_for(n: int, tmp_path: Path) -> None:
    """The model would say five."""
    lay_out(tmp_path, {"m.bin": saying(b"hijkl")})
    outcome = in_process([*GREEDY, "--max-new-tokens", str(n)], tmp_path)
    assert outcome.out == b"hijkl"[:n] + b"\n"


def test_end_of_text_ends_it_unless_ignored(tmp_path: Path) -> None:
    """EOS itself is never shown."""
    h, i = byte_id(ord("h")), byte_id(ord("i"))
    lay_out(tmp_path, {"m.bin": scripted(((1, h), (h, EOS), (EOS, i)))})
    assert in_process(GREEDY, tmp_path).out == b"h\n"
    assert in_process([*GREEDY, "--ignore-eos", "--max-new-tokens", "3"], tmp_path).out == b"hi\n"


def test_less_context_ends_it_earlier(tmp_path: Path) -> None:
    """A full context is said on stderr."""
    lay_out(tmp_path, {"m.bin": saying(b"hijkl")})
    outcome = in_process([*GREEDY, "--context", "2"], tmp_path)
    assert outcome.out == b"hi\n"
    assert b"pyllm2: the context of 2 tokens is full: stopped after 2 new tokens\n" in outcome.err


def test_mapped_weights_say_the_same(folder: Path) -> None:
    """--mmap changes how the file is read, not what it says."""
    argv = [*GREEDY, "--prompt", PROMPT]
    assert in_process([*argv, "--mmap"], folder).out == in_process(argv, folder).out


def test_the_tokenizer_is_found_beside_the_model_then_here(folder: Path) -> None:
    """By default it is called tokenizer.bin."""
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
    """A file name with a newline cannot forge a line of its own."""
    (folder / "t\n\x1b.bin").write_bytes(b"\xff" + vocabulary()[1:])
    argv = ["generate", "m.bin", "--tokenizer", "t\n\x1b.bin", "--backend", "numpy"]
    outcome = in_process(argv, folder)
    assert outcome.code == 0
    first = outcome.err.splitlines()[0]
    assert first == b"pyllm2: warning: t\\n\\x1b.bin: max_token_length = 255 (byte 0): it is 6"
