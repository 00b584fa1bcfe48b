"""llm.c's multiple-choice file from JSON lines, as HellaSwag is published.

One object per line: `ctx`, the beginning; `endings`, four of them; `label`, the number of the right
one, 0 to 3. Other fields are not used. The context is encoded as it is, every ending with a blank
in front.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pyllm2.errors import FormatError, shown
from pyllm2.formats.llmc_evaluation import COMPLETIONS, MAX_EXAMPLES, START, Example

SOURCE = "github.com/rowanz/hellaswag, data/hellaswag_val.jsonl"
EXPECTED = (
    f'expected a line of HellaSwag ({SOURCE}): {{"ctx": TEXT, "endings": 4 TEXTS, "label": 0 to 3}}'
)


def examples(path: str, data: bytes, tokenizer: Any) -> Iterator[Example]:
    """The examples of a file of JSON lines; blank lines are skipped.

    tokenizer: with ids below 65535, which is all that the format holds

    Raises FormatError naming the line and what is wrong with it.
    """
    if tokenizer.vocab_size > START:
        size = tokenizer.vocab_size
        raise FormatError(path, f"a vocabulary of {size}: the format has room for {START} ids")
    count = 0
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            yield _example(path, number, line, tokenizer)
            count += 1
            if count > MAX_EXAMPLES:
                raise FormatError(path, f"line {number}: the format has {MAX_EXAMPLES} examples")
    if count == 0:
        raise FormatError(path, f"has no line: {EXPECTED}")


def _example(path: str, number: int, line: bytes, tokenizer: Any) -> Example:
    where = f"line {number}"
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise FormatError(path, f"{where} is not JSON: {EXPECTED}") from None
    fields = found if isinstance(found, dict) else {}
    context, endings, label = (fields.get(name) for name in ("ctx", "endings", "label"))
    if not isinstance(context, str) or not context:
        raise FormatError(path, f"{where}: ctx = {shown(context)}: {EXPECTED}")
    texts = endings if isinstance(endings, list) else []
    if len(texts) != COMPLETIONS or not all(isinstance(text, str) for text in texts):
        raise FormatError(path, f"{where}: endings = {shown(endings)}: {EXPECTED}")
    if str(label) not in map(str, range(COMPLETIONS)):
        raise FormatError(path, f"{where}: label = {shown(label)}: {EXPECTED}")
    ids = [tokenizer.encode(text, bos=False, special=False) for text in _texts(context, texts)]
    if not all(ids):
        raise FormatError(path, f"{where}: a text without a token")
    example = Example(int(str(label)), ids[0], ids[1:])
    if 2 * (sum(map(len, ids)) + 10) >= START:
        raise FormatError(path, f"{where}: {sum(map(len, ids))} tokens: too long for the format")
    return example


def _texts(context: str, endings: list[str]) -> list[bytes]:
    """A lone surrogate, which JSON allows, becomes U+FFFD."""
    texts = [context, *(f" {ending}" for ending in endings)]
    return [text.encode("utf-8", "replace") for text in texts]
