"""The examples at the end of help pages: command lines without `pyllm2`, a page per row.

A test parses every one of them. Pages with more at their end have it in their module.
"""

from __future__ import annotations

import argparse

EXAMPLES = {
    "generate": (
        "generate --prompt 'Once upon a time' --temperature 0.8",
        "generate model.bin --prompt-file - --json < prompt.txt",
    ),
    "tokenize": (
        "tokenize 'Once upon a time' --pieces",
        "tokenize --count --tokenizer gpt2 < text.txt",
        "tokenize --decode '1 403 407'",
    ),
    "tokenizer": ("tokenizer train text.txt --vocab-size 1024 --out text.model",),
    "tokenizer train": (
        "tokenizer train text.txt --vocab-size 1024 --out text.model",
        "data prepare text.txt --tokenizer text.model --out data",
    ),
    "tokenizer export": ("tokenizer export text.model tokenizer.bin",),
    "export": ("export model.bin model-v1.bin --format v1",),
    "quantize": ("quantize model.bin model-q8.bin --report",),
    "train": (
        "train text my.txt --out mine --minutes 10",
        "train llama2 --out mine --resume",
    ),
    "train text": (
        "train text my.txt --out mine --minutes 10",
        "train text --out mine --resume",
        "generate mine --prompt 'Once'",
    ),
    "data": ("data prepare text.txt --tokenizer bytes --out data",),
    "data hellaswag": ("data hellaswag hellaswag_val.jsonl --tokenizer gpt2 --out val.bin",),
    "data prepare": (
        "data prepare text.txt --tokenizer bytes --out data",
        "data prepare a.txt b.txt --tokenizer gpt2 --separator none --out data",
    ),
    "eval text": (
        "eval text mine my.txt",
        "eval text gpt2.bin wiki.txt --tokenizer gpt2 --separator none --json",
    ),
    "eval": (
        "eval text mine my.txt",
        "eval hellaswag gpt2.bin --data hellaswag_val.bin",
    ),
    "eval hellaswag": ("eval hellaswag gpt2.bin --data hellaswag_val.bin --batch 4",),
    "gradcheck": ("gradcheck", "gradcheck llama2.attention --examples 100"),
    "bench": ("bench model.bin", "bench --shape 110M --backends numba,c --json bench.json"),
    "vectors": ("vectors --out golden --format npz",),
}


def add_examples(parser: argparse.ArgumentParser, words: str) -> None:
    """End the help page of a command, unless it has an end, with its examples."""
    if words in EXAMPLES and parser.epilog is None:
        lines = [f"  pyllm2 {line}" for line in EXAMPLES[words]]
        title = "example:" if len(lines) == 1 else "examples:"
        parser.epilog = "\n".join([title, *lines])
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                add_examples(below, f"{words} {name}".lstrip())
