"""llm.c's multiple-choice files (`hellaswag_val.bin`): contexts, completions and labels.

The header has the number of examples and the size of the longest in bytes. An example is a row of
uint16: 65535, its size in bytes, its index, the label, the number of completions, then the context
and each completion, each preceded by its number of ids.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import FormatError
from pyllm2.formats.llmc_header import HEADER_BYTES, header_bytes, read_fields, require_version
from pyllm2.formats.reader import open_source
from pyllm2.formats.writer import atomic_write

MAGIC, VERSION = 20240522, 1
START = 65535
COMPLETIONS = 4
MAX_EXAMPLES = 65535


@dataclass(frozen=True)
class Example:
    """A context and four completions, as ids; `label` is the right completion."""

    label: int
    context: list[int]
    completions: list[list[int]]

    def words(self, index: int) -> list[int]:
        """The uint16 numbers of the file."""
        body = [index, self.label, len(self.completions)]
        for ids in (self.context, *self.completions):
            body += [len(ids), *ids]
        return [START, 2 * (len(body) + 2), *body]


def read_examples(path: str | os.PathLike[str]) -> list[Example]:
    """Read a whole file.

    Raises FormatError naming the example and what is wrong with it.
    """
    with open_source(path) as source:
        _, version, n, longest, *_ = read_fields(source, (MAGIC,), "an evaluation file")
        require_version(source, version, (VERSION,), f"{VERSION} is")
        if not 1 <= n <= MAX_EXAMPLES:
            raise FormatError.field(source.path, "examples", n, 8, f"expected 1 to {MAX_EXAMPLES}")
        if not 1 <= longest <= 2 * START or source.size > HEADER_BYTES + n * longest:
            size = f"{n} examples in {source.size} bytes"
            raise FormatError.field(source.path, "longest_example", longest, 12, size)
        if source.size % 2:
            raise FormatError(source.path, f"{source.size} bytes: must be an even number")
        words = source.read_range(HEADER_BYTES, source.size - HEADER_BYTES).view("<u2")
    examples, at = [], 0
    for i in range(n):
        where = f"example {i} of {n} (byte {HEADER_BYTES + 2 * at})"
        length, found = _read_example(words[at:], i)
        if isinstance(found, str):
            raise FormatError(source.path, f"{where}: {found}")
        examples.append(found)
        at += length
    if at < len(words):
        left = f"{2 * (len(words) - at)} bytes (byte {HEADER_BYTES + 2 * at})"
        raise FormatError(source.path, f"{left} after the last of {n} examples")
    return examples


def _read_example(words: NDArray[np.uint16], index: int) -> tuple[int, Example | str]:
    """The number of words of an example; and the example, or what is wrong with it."""
    if len(words) < 6:
        return 0, f"{2 * len(words)} bytes left, it needs 12 at least"
    start, nbytes, found_index, label, n = map(int, words[:5])
    if start != START:
        return 0, f"start = {start}: expected {START}"
    if nbytes % 2 or not 12 <= nbytes <= 2 * len(words):
        return 0, f"size = {nbytes}: {2 * len(words)} bytes are left"
    if found_index != index:
        return 0, f"index = {found_index}: expected {index}"
    if n != COMPLETIONS:
        return 0, f"completions = {n}: expected {COMPLETIONS}"
    if label >= n:
        return 0, f"label = {label}: expected 0 to {n - 1}"
    parts, at, end = [], 5, nbytes // 2
    for part in range(1 + n):
        length = int(words[at]) if at < end else 0
        if at + 1 + length > end:
            return 0, f"part {part}: {length} ids exceed its size = {nbytes}"
        parts.append(words[at + 1 : at + 1 + length].tolist())
        at += 1 + length
    if at != end:
        return 0, f"size = {nbytes}: its parts have {2 * at}"
    if not all(parts):
        return 0, f"part {parts.index([])} has no ids"
    return end, Example(label, parts[0], parts[1:])


def write_examples(path: str | os.PathLike[str], examples: Sequence[Example]) -> None:
    """Write a file, atomically.

    Raises ValueError (a mistake of the caller) for what the format cannot hold.
    """
    if not 1 <= len(examples) <= MAX_EXAMPLES:
        raise ValueError(f"{len(examples)} examples: expected 1 to {MAX_EXAMPLES}")
    rows = [example.words(i) for i, example in enumerate(examples)]
    for i, (row, example) in enumerate(zip(rows, examples, strict=True)):
        fits = row[1] < START and max(row[2:]) < START
        if not fits or len(example.completions) != COMPLETIONS:
            raise ValueError(f"example {i} does not fit the format")
    with atomic_write(path) as file:
        file.write(header_bytes(MAGIC, VERSION, len(rows), max(row[1] for row in rows)))
        for row in rows:
            file.write(np.array(row, "<u2").tobytes())
