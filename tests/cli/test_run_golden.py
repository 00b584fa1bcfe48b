"""`pyllm2 run` against recorded runs of the original: the same bytes, the same exit code."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Outcome, as_process, in_process

Case = dict[str, Any]
FLAGS = {"-t": "temperature", "-p": "topp", "-s": "seed", "-n": "steps"}
AS_PROCESS = {"no_arguments", "model_half", "seed_one", "tokenizer_too_short", "unknown_mode"}


def start_of(case: Case, golden: Path) -> list[str | bytes]:
    """`run MODEL -z TOKENIZER` on the NumPy backend."""
    files = [str(golden / case[name]) for name in ("model", "tokenizer")]
    return ["run", files[0], "-z", files[1], "--backend", "numpy"]


def check_generation(case: Case, outcome: Outcome) -> None:
    assert outcome.out == bytes.fromhex(case["stdout_hex"])
    assert outcome.code == case["exit_code"]
    assert (b"achieved tok/s: " in outcome.err) == case["speed_line_on_stderr"]


def generation_argv(case: Case, golden: Path) -> list[str | bytes]:
    argv = start_of(case, golden)
    for flag, name in FLAGS.items():
        if case[name] is not None:
            argv += [flag, case[name]]
    if case["prompt_hex"] is not None:
        argv += ["-i", bytes.fromhex(case["prompt_hex"])]
    return argv


def test_it_tells_the_stories_of_the_original(
    generation: Case, golden: Path, tmp_path: Path
) -> None:
    """stdout, exit code and speed line of every recorded generation."""
    check_generation(generation, in_process(generation_argv(generation, golden), tmp_path))


def test_it_converses_as_the_original(conversation: Case, golden: Path, tmp_path: Path) -> None:
    """stdout and exit code of every recorded chat."""
    argv = [*start_of(conversation, golden), "-m", "chat"]
    for letter, value in conversation["options"].items():
        argv += [f"-{letter}", value]
    outcome = in_process(argv, tmp_path, bytes.fromhex(conversation["stdin_hex"]))
    assert outcome.out == bytes.fromhex(conversation["stdout_hex"])
    assert outcome.code == conversation["exit_code"]


@pytest.fixture(scope="session")
def placeholders(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files that the command-line cases name."""
    folder = tmp_path_factory.mktemp("placeholders")
    model, tokenizer = golden / "stories260K.bin", golden / "tok512.bin"
    m, t = model.read_bytes(), tokenizer.read_bytes()
    made = {
        "{SHORT_HEADER}": m[:20],
        "{HEADER_ONLY}": m[:28],
        "{HALF_MODEL}": m[:500000],
        "{MODEL_NO_ROPE}": m[:1040156],
        "{EMPTY}": b"",
        "{TOK_HALF}": t[:3000],
        "{TOK_3BYTES}": t[:3],
        "{TOK_ZERO_LENGTH_PIECE}": struct.pack("<ifi", 7, 0, 0) + t[4:],
    }
    paths = {name: str(folder / name.strip("{}")) for name in (*made, "{MISSING}")}
    for name, data in made.items():
        Path(paths[name]).write_bytes(data)
    big = golden / "tokenizer.bin"
    return {**paths, "{MODEL}": str(model), "{TOK}": str(tokenizer), "{TOK32K}": str(big)}


def test_it_takes_the_command_line_of_the_original(
    command_line: Case, placeholders: dict[str, str], tmp_path: Path
) -> None:
    """Every recorded command line; one line of error where the original reads out of bounds."""
    argv = ["run", *(placeholders.get(word, word) for word in command_line["argv"])]
    if len(argv) % 2 == 0 and len(argv) > 2:  # a complete command line takes one more flag
        argv += ["--backend", "numpy"]
    runner = as_process if command_line["name"] in AS_PROCESS else in_process
    outcome = runner(argv, tmp_path)
    if command_line["undefined_upstream"]:
        assert (outcome.code, outcome.out) == (1, b"")
        assert outcome.err.startswith(b"pyllm2: error: ")
        assert outcome.err.count(b"\n") == 1
        return
    assert outcome.code == command_line["exit_code"]
    if command_line["stdout_hex"] is not None:
        assert outcome.out == bytes.fromhex(command_line["stdout_hex"])


def test_a_process_prints_what_main_prints(golden: Path, tmp_path: Path) -> None:
    """One story in a real process, with the default backend."""
    files = (golden / "stories260K.bin", golden / "tok512.bin")
    argv = ("run", str(files[0]), "-z", str(files[1]), "-t", "0", "-n", "40", "-i", "Once")
    real, inside = as_process(argv, tmp_path), in_process(argv, tmp_path)
    assert (real.code, real.out) == (0, inside.out)
    assert len(real.out) > 40
