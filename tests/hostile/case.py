"""What a row of the table of bad inputs is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..cli.program import Argument, Outcome
from ..cli.tiny import V, lay_out

# numpy: the border is the same for every backend, and this one needs no compiler
FILES: tuple[Argument, ...] = ("m.bin", "--tokenizer", "t.bin", "--backend", "numpy")
GENERATE: tuple[Argument, ...] = (
    "generate", *FILES, "--temperature", "0", "--max-new-tokens", "4",
)  # fmt: skip
CHAT: tuple[Argument, ...] = ("chat", *FILES, "--temperature", "0")
RUN: tuple[Argument, ...] = (
    "run", "m.bin", "-z", "t.bin", "--backend", "numpy", "-t", "0", "-n", "8", "-i", "a cab",
)  # fmt: skip
TOKENIZE: tuple[Argument, ...] = ("tokenize", "--tokenizer", "t.bin", "a cab")


@dataclass(frozen=True)
class Case:
    """One refusal: the files, the command, and the one line that it must answer.

    row: its number in the table. error: what follows `pyllm2: error: `, exactly. files: beside or
    instead of a good m.bin and t.bin. make: what cannot be written as bytes. run: whether the
    drop-in must refuse it in the same words; tokenize: likewise, but without the model's size.
    """

    row: int
    name: str
    error: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    argv: tuple[Argument, ...] = (*GENERATE, "--prompt", "a cab")
    code: int = 1
    make: Callable[[Path], None] | None = None
    run: bool = False
    tokenize: bool = False

    def __str__(self) -> str:
        return f"{self.row}-{self.name}"

    def prepare(self, folder: Path) -> None:
        lay_out(folder, self.files)
        if self.make is not None:
            self.make(folder)

    def check(self, outcome: Outcome) -> None:
        """The exit code, one line on stderr, nothing on stdout."""
        expected = Outcome(self.code, b"", f"pyllm2: error: {self.error}\n".encode())
        assert outcome == expected

    def for_tokenize(self) -> Case:
        """The same through `tokenize`, which knows of no model."""
        error = self.error.replace(f" of {V} ", " ").replace(f" of {V}:", ":")
        return Case(self.row, self.name, error, self.files, TOKENIZE, 1, self.make)


def of_model(row: int, name: str, data: bytes, error: str, run: bool = True) -> Case:
    """A bad m.bin, refused by `generate` and, in the same words, by `run`."""
    return Case(row, name, f"m.bin: {error}", {"m.bin": data}, run=run)


def of_tokenizer(row: int, name: str, data: bytes, error: str, run: bool = True) -> Case:
    """A bad t.bin, refused by `generate`, `run` and `tokenize`."""
    return Case(row, name, f"t.bin: {error}", {"t.bin": data}, run=run, tokenize=True)


def of_flags(row: int, name: str, error: str, *argv: Argument, code: int = 2) -> Case:
    """A request that is refused with good files."""
    return Case(row, name, error, argv=(*GENERATE, *argv), code=code)


def entries(folder: Path) -> set[str]:
    """All names below a folder."""
    return {
        os.path.join(at, name) for at, folders, files in os.walk(folder) for name in folders + files
    }
