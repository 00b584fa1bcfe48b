"""A case of the table of bad inputs (README.md in this folder): what is run, what it must print."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.support.command import Argument, Outcome
from tests.support.llama2_files import V, lay_out

Argv = tuple[Argument, ...]

# On NumPy: inputs are checked before a backend is involved, and this one needs no compiler.
FILES = "m.bin --tokenizer t.bin --backend numpy".split()
GENERATE: Argv = ("generate", *FILES, *"--temperature 0 --max-new-tokens 4".split())
CHAT: Argv = ("chat", *FILES, "--temperature", "0")
RUN: Argv = (*"run m.bin -z t.bin --backend numpy -t 0 -n 8 -i".split(), "a cab")
TOKENIZE: Argv = ("tokenize", "--tokenizer", "t.bin", "a cab")


@dataclass(frozen=True)
class Case:
    """A refusal: the files, the command, and the line that it must print.

    row: number in README.md
    error: what follows `pyllm2: error: `, exactly
    files: beside or instead of a valid m.bin and t.bin
    make: changes the folder where bytes of a file do not suffice
    run: whether `run` must refuse it in the same words
    tokenize: whether `tokenize` must, without the number of tokens that the model expects
    """

    row: int
    name: str
    error: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    argv: Argv = (*GENERATE, "--prompt", "a cab")
    code: int = 1
    make: Callable[[Path], object] | None = None
    run: bool = False
    tokenize: bool = False

    def __str__(self) -> str:
        return f"{self.row}-{self.name}"

    def prepare(self, folder: Path) -> None:
        """Write the files."""
        lay_out(folder, self.files)
        if self.make is not None:
            self.make(folder)

    def check(self, outcome: Outcome) -> None:
        """Assert the exit code, one line on stderr, and nothing on stdout."""
        expected = Outcome(self.code, b"", f"pyllm2: error: {self.error}\n".encode())
        assert outcome == expected

    def for_tokenize(self) -> Case:
        """The same through `tokenize`, which reads no model."""
        error = self.error.replace(f" of {V} ", " ").replace(f" of {V}:", ":")
        return replace(self, error=error, argv=TOKENIZE)


def of_model(row: int, name: str, data: bytes, error: str, run: bool = True) -> Case:
    """A bad m.bin, refused by `generate` and, in the same words, by `run`."""
    return Case(row, name, f"m.bin: {error}", {"m.bin": data}, run=run)


def of_tokenizer(row: int, name: str, data: bytes, error: str, run: bool = True) -> Case:
    """A bad t.bin, refused by `generate`, `run` and `tokenize`."""
    return Case(row, name, f"t.bin: {error}", {"t.bin": data}, run=run, tokenize=True)


def of_flags(row: int, name: str, error: str, *argv: Argument, code: int = 2) -> Case:
    """Flags of `generate` that are refused although the files are valid."""
    return Case(row, name, error, argv=(*GENERATE, *argv), code=code)


def entries(folder: Path) -> set[str]:
    """The paths of all files and folders below a folder."""
    return {
        os.path.join(at, name) for at, folders, files in os.walk(folder) for name in folders + files
    }
