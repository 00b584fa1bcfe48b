"""How a program is called, and where the text stands in what it prints.

A template is the words after the program: `{model} -t {temperature} [-i {prompt}]`. What is in
brackets is dropped if one of its values is absent; brackets can be nested. Nothing passes through
a shell: the template is split once, and a value is always one argument, or a part of one.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pyllm2.conform import child
from pyllm2.conform.case import WORDS, Case
from pyllm2.errors import FileError, UsageError

RUN_C = (
    "{model} [-z {tokenizer}] [-t {temperature}] [-p {topp}] [-s {seed}] [-n {steps}] [-i {prompt}]"
)
RUN_C_CHAT = f"{RUN_C} -m chat [-y {{system}}]"
# What else programs have; tried, for a proposal, if run.c's line gives nothing.
_LONG = "--temperature {temperature} --steps {steps} [--prompt {prompt}]"
PROPOSALS = (
    ("{model} {temperature} [{steps} [{prompt}]]", "tokenizer.bin"),
    ("{model} -t {temperature} -n {steps} [-i {prompt}]", "tokenizer.bin"),
    ("{model} {tokenizer} {temperature} {steps} [{prompt}]", ""),
    ("{model} {temperature} {steps} {prompt}", "tokenizer.bin"),
    ("{model} {tokenizer} [{prompt}]", ""),
    ("{model} [{prompt}]", "tokenizer.bin"),
    (f"--model {{model}} --tokenizer {{tokenizer}} {_LONG}", ""),
    (f"-checkpoint {{model}} -tokenizer {{tokenizer}} {_LONG.replace('--', '-')}", ""),
    (f"{{model}} {_LONG}", "tokenizer.bin"),
)
_TRACER = re.compile(rb"\[(\d{1,9})\]")

Node = str | tuple[str] | list["Node"]  # text, a word, a group in brackets
STDIN = "stdin"  # file with the lines of a chat
ARGUMENT = "\0"  # between arguments, while a template is filled in


@dataclass(frozen=True)
class Template:
    """A parsed template."""

    text: str
    nodes: tuple[Node, ...]
    words: frozenset[str]

    def fill(self, values: Mapping[str, str | bytes]) -> list[bytes]:
        """The arguments, without the groups that lack a value; an absent word outside is empty."""
        text = _fill(self.nodes, {**dict.fromkeys(WORDS, ""), **values}, values) or b""
        return text.split(ARGUMENT.encode())[1:]


def parse(text: str) -> Template:
    """Raises UsageError for an unknown word or an unbalanced bracket."""
    try:
        spaced = re.sub(r"(?<!\\)([\[\]])", r" \1 ", text)
        parts = shlex.split(spaced)
    except ValueError as error:
        raise UsageError(f"--args: {text!r}: {str(error).lower()}") from None
    stack: list[list[Node]] = [[]]
    words: set[str] = set()
    for part in parts:
        if part == "[":
            stack.append([])
        elif part == "]":
            if len(stack) == 1:
                raise UsageError(f"--args: {text!r}: a ] without its [")
            group = stack.pop()
            stack[-1].append(group)
        else:
            stack[-1] += [ARGUMENT, *_words_of(part, text, words)]
    if len(stack) > 1:
        raise UsageError(f"--args: {text!r}: a [ without its ]")
    if "model" not in words:
        raise UsageError(f"--args: {text!r}: expected {{model}} somewhere")
    return Template(text, tuple(stack[0]), frozenset(words))


def _words_of(part: str, text: str, words: set[str]) -> list[Node]:
    """The text and words of one argument.

    Example: "--steps={steps}" -> ["--steps=", ("steps",)]
    """
    found: list[Node] = []
    at = 0
    for match in re.finditer(r"\{(\w*)\}", part):
        if match[1] not in WORDS:
            known = " ".join(f"{{{word}}}" for word in WORDS)
            raise UsageError(f"--args: {text!r}: {match[0]} is not one of {known}")
        words.add(match[1])
        found += [part[at : match.start()], (match[1],)]
        at = match.end()
    return [*found, part[at:]]


def _fill(
    nodes: Sequence[Node], values: Mapping[str, str | bytes], inside: Mapping[str, str | bytes]
) -> bytes | None:
    """The text of nodes, with an ARGUMENT before each argument; None if a word has no value.

    inside: the values that count in brackets
    """
    out = b""
    for node in nodes:
        if isinstance(node, str):
            out += node.encode()
        elif isinstance(node, tuple):
            value = values.get(node[0])
            if value is None:
                return None
            out += value.encode() if isinstance(value, str) else value
        else:
            out += _fill(node, inside, inside) or b""
    return out


@dataclass(frozen=True)
class Adapter:
    """A program and everything that is known of how to drive it."""

    program: tuple[str, ...]
    template: Template = field(default_factory=lambda: parse(RUN_C))
    cwd_tokenizer: str = ""  # path, in the working directory, where it looks for the vocabulary
    scored: bool = True  # the vocabulary has scores
    begin: str = ""
    end: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: child.Limits = field(default_factory=child.Limits)

    @property
    def is_run_c(self) -> bool:
        """Whether the command line is that of run.c, so that its stdout is held to run.c's too."""
        return self.template.text in (RUN_C, RUN_C_CHAT) and not (self.begin or self.end)

    def names(self, word: str) -> bool:
        return word in self.template.words

    def command(self, case: Case) -> list[bytes]:
        values = {w: v for w, v in case.words().items() if self.names(w)}
        program = [os.fsencode(word) for word in self.program]
        return [*program, *(a for a in self.template.fill(values))]

    def run(self, case: Case) -> child.Outcome:
        """Run a case in a temporary directory of its own, with its two files."""
        with tempfile.TemporaryDirectory(prefix="conform-") as name:
            folder = Path(name)
            self.lay_out(case, folder)
            return self.run_in(case, folder)

    def run_in(self, case: Case, folder: Path) -> child.Outcome:
        locale = {"LC_ALL": "C.UTF-8", "LANG": "C.UTF-8"}
        environment = {**os.environ, **locale, **self.environment}
        return child.run(self.command(case), folder, self.limits, environment, case.stdin)

    def lay_out(self, case: Case, folder: Path) -> None:
        """Write the files of a case."""
        files = {"model.bin": case.model_file()}
        vocabulary = case.vocabulary_file(self.scored)
        if self.names("tokenizer") or not self.cwd_tokenizer:
            files["tokenizer.bin"] = vocabulary
        if self.cwd_tokenizer:
            files[self.cwd_tokenizer] = vocabulary
        if case.lines:
            files[STDIN] = case.stdin
        for path, data in files.items():
            if data is not None:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(data)

    def text_of(self, out: bytes) -> bytes:
        """The part of stdout between `begin` and `end`."""
        if self.begin:
            match = re.search(self.begin.encode(), out)
            out = out[match.end() :] if match else b""
        if self.end:
            match = re.search(self.end.encode(), out)
            out = out[: match.start()] if match else out
        return out

    def shell_line(self, case: Case) -> str:
        """The command as a line for a shell."""
        words = [f"{name}={quoted(v.encode())}" for name, v in self.environment.items()]
        words += [quoted(word) for word in self.command(case)]
        return " ".join([*words, *(["<", STDIN] if case.lines else [])])


def ids_of(text: bytes) -> list[int]:
    """The tracers in a text, in order. NULs between and inside them do not matter."""
    return [int(found) for found in _TRACER.findall(text.replace(b"\0", b""))]


def quoted(word: bytes) -> str:
    """A word for a shell; bytes that are not printable as $'\\xNN'.

    Example: b"a b" -> 'a b'
    """
    text = word.decode("utf-8", "surrogateescape")
    if text.isprintable():
        return shlex.quote(text)
    escaped = "".join(
        chr(b) if 0x20 <= b < 0x7F and b not in b"\\'" else f"\\x{b:02x}" for b in word
    )
    return f"$'{escaped}'"


def program_of(words: Sequence[str]) -> tuple[str, ...]:
    """The program with every word that names an existing file made absolute.

    Each run has a working directory of its own, where relative paths would be lost.

    Raises FileError if the program does not exist.
    """
    found = [os.path.abspath(word) if os.path.exists(word) else word for word in words]
    if os.sep not in words[0]:  # a name: the shell's rule, the current folder does not count
        on_path = shutil.which(words[0])
        if on_path is None:
            hint = f": to run the file here, write ./{words[0]}" if os.path.exists(words[0]) else ""
            raise FileError(words[0], f"no such program{hint}")
        found[0] = os.path.abspath(on_path)
    elif not os.path.isfile(words[0]):
        raise FileError(words[0], "no such program")
    elif not os.access(words[0], os.X_OK):
        raise FileError(words[0], "is not executable: start it with its interpreter, after --")
    return tuple(found)
