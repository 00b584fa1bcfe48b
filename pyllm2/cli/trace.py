"""`pyllm2 trace`: record every op of a run."""

from __future__ import annotations

import argparse

from pyllm2.cli import flags, numbers
from pyllm2.cli.inputs import argument_bytes
from pyllm2.cli.output import Output, say
from pyllm2.cli.outputs import add_force, check_output, output
from pyllm2.errors import UsageError

SUMMARY = "record every op of a run: shapes, values, times"
EXAMPLE = """\
example:
  pyllm2 trace --prompt 'One day' --only layer=2 op=attention --out t.npz"""
PROMPT = "Once upon a time"
WHOLE_NUMBERS = ("layer", "call", "position")
WORDS = ("op", "weight", "phase")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLE
    add_model_and_prompt(parser)
    flags.add_machine(parser)
    parser.add_argument(
        "--new-tokens",
        type=numbers.count,
        default=0,
        metavar="N",
        help="also trace N tokens that continue the prompt",
    )
    parser.add_argument(
        "--backward", action="store_true", help="trace a training step: forward, loss, backward"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="FIELD=X",
        help=f"keep the values of these ops only; FIELD is {flags.one_of(WHOLE_NUMBERS + WORDS)}",
    )
    parser.add_argument(
        "--out",
        type=output,
        metavar="FILE",
        help="write the trace to FILE: .npz, .safetensors or .jsonl",
    )
    add_force(parser)


def add_model_and_prompt(parser: argparse.ArgumentParser) -> None:
    """MODEL, --tokenizer, and --prompt or --ids."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="checkpoint (default: the bundled story model)"
    )
    parser.add_argument("--tokenizer", metavar="FILE", help=flags.TOKENIZER_FILES)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", default=PROMPT, metavar="TEXT", help="the prompt")
    prompt.add_argument("--ids", metavar="I,J", help="token ids instead of a text")


def main(options: argparse.Namespace) -> int:
    from pyllm2.observe import files, trace

    only = trace.Only(tuple(map(_condition, options.only or ())))
    if options.out is not None:
        files.check_suffix(options.out)
        check_output(options.out, options.model, force=options.force)
    model, prompt = open_with_prompt(options)
    ids = trace.prompt_ids(model, prompt, options.new_tokens)
    keep = only if options.only else None
    if options.backward:
        import numpy as np

        if options.new_tokens:
            raise UsageError("--new-tokens: a training step has none (--backward)")
        if len(ids) < 2:
            raise UsageError("--backward: expected a prompt of at least 2 tokens")
        x, y = np.array([ids[:-1]]), np.array([ids[1:]])
        nbytes = trace.predicted_training_nbytes(model, 1, x.size, keep)
        _say_size(nbytes, f"a training step of {x.size} tokens")
        found = trace.trace_training(model, x, y, keep)
    else:
        nbytes = trace.predicted_nbytes(model, len(ids), keep)
        if options.new_tokens:
            nbytes += options.new_tokens * trace.predicted_nbytes(model, 1, keep)
        _say_size(nbytes, f"{len(ids) + options.new_tokens} tokens")
        found = trace.trace(model, ids, options.new_tokens, keep)
    if options.out is not None:
        files.save_trace(found, options.out)
        say(f"{options.out}: {len(found)} ops")
    else:
        Output().write(f"{_table(found)}\n".encode())
    return 0


def open_with_prompt(options: argparse.Namespace, backend: str | None = None):  # type: ignore[no-untyped-def]
    """The model and the prompt, a text or ids, that the flags name.

    backend: instead of --backend
    """
    from functools import partial

    from pyllm2.cli.loading import find_tokenizer
    from pyllm2.inference.load import load

    tokenizer = options.tokenizer
    if options.model is not None and tokenizer is None and options.ids is None:
        tokenizer = partial(find_tokenizer, options.model)
    threads = getattr(options, "threads", None)
    backend = backend or getattr(options, "backend", None)
    model = load(options.model, tokenizer, backend, threads=threads)
    if options.ids is None:
        return model, argument_bytes(options.prompt)
    return model, ids_of(options.ids)


def ids_of(text: str) -> list[int]:
    """Example: "1, 5,7" -> [1, 5, 7]. Raises UsageError."""
    words = text.replace(",", " ").split()
    for word in words:
        if not (word.isascii() and word.isdigit() and len(word) < 10):
            raise UsageError(f"--ids: {word!r}: expected token ids, such as 1,5,7")
    return [int(word) for word in words]


def _condition(text: str) -> tuple[str, str | int]:
    """Example: "layer=2" -> ("layer", 2). Raises UsageError."""
    name, equals, value = text.partition("=")
    if not equals or name not in WHOLE_NUMBERS + WORDS:
        names = flags.one_of([f"{n}=" for n in WHOLE_NUMBERS + WORDS])
        raise UsageError(f"--only: {text!r}: expected {names} and a value")
    if name in WORDS:
        return name, value
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise UsageError(f"--only: {text!r}: expected a whole number after {name}=")
    return name, int(value)


def _say_size(nbytes: int, what: str) -> None:
    say(f"{what}: the trace will hold {amount(nbytes)} of results")


def amount(nbytes: int) -> str:
    """Example: 1234567 -> "1.2 MB" """
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.1f} {name}"
    return f"{nbytes} bytes"


def _table(trace) -> str:  # type: ignore[no-untyped-def]
    from pyllm2.observe.notebook import numbers as in_numbers

    lines = [f"{'':>5} {'op':<32} {'ms':>8} {'min':>10} {'max':>10} {'mean':>10}  shapes"]
    for r in trace:
        if r.kept:
            columns = " ".join(f"{number:>10}" for number in in_numbers(r))
            lines.append(
                f"{r.index:>5} {r.name:<32} {1e3 * r.seconds:>8.3f} {columns}  {r.described}"
            )
    return "\n".join(lines)
