"""`pyllm2 diff`: compare backends op by op, run by run, token by token."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyllm2.backends import NAMES as BACKENDS
from pyllm2.cli import flags, numbers
from pyllm2.cli.flags import one_of
from pyllm2.cli.output import Output
from pyllm2.cli.outputs import output
from pyllm2.cli.trace import PROMPT, add_model_and_prompt, open_with_prompt
from pyllm2.errors import UsageError

if TYPE_CHECKING:
    from pyllm2.observe.report import Report

# As in pyllm2.observe.dump and .against, which load NumPy.
UNITS = ("float64", "float32", "float16", "bfloat16")
LAYOUTS = ("streams", "transformers", "streams+norm", "layers", "layers+norm", "inputs")
ROPE_ORDERS = ("interleaved", "half-split")
SUMMARY = "show where backends differ by more than rounding, op by op"
EXAMPLE = """\
example:
  pyllm2 diff --backends numpy,numba,c --prompt 'One day' --backward
  pyllm2 diff model.gguf --against dump.npz
  pyllm2 diff stories15M.bin --prompt 'One day' -- ./run"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLE
    add_model_and_prompt(parser)
    parser.set_defaults(prompt=None)
    parser.add_argument(
        "--backends",
        type=flags.names_of(BACKENDS),
        metavar="A,B",
        help="backends to compare with the specification (default: all that can run here)",
    )
    flags.add_threads(parser)
    parser.add_argument(
        "--backward",
        action="store_true",
        help="compare losses and gradients of a training step",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="the error budget instead: what each op adds and carries, what a test should allow",
    )
    training = parser.add_argument_group("training in lockstep")
    training.add_argument(
        "--train",
        type=numbers.positive,
        metavar="N",
        help="N steps from the same weights on the same batches; stop at the first that differs",
    )
    training.add_argument(
        "--data", nargs="+", metavar="GLOB", help="token shards (default: random ids)"
    )
    training.add_argument(
        "--batch-size", type=numbers.positive, default=2, metavar="B", help="rows"
    )
    training.add_argument(
        "--seq-len", type=numbers.positive, metavar="T", help="positions (default: at most 16)"
    )
    training.add_argument(
        "--learning-rate", type=numbers.above_0, default=1e-3, metavar="X", help="of AdamW"
    )
    training.add_argument("--seed", type=numbers.count, default=1, metavar="N", help="of the ids")
    training.add_argument(
        "--out",
        type=output,
        default="diff.d",
        metavar="DIR",
        help="folder that gets a new folder with the smallest repetition",
    )
    program = parser.add_argument_group("a program: diff MODEL [flags] -- ./program")
    program.add_argument(
        "--args", metavar="TEMPLATE", help="its arguments, as for conform (default: run.c's)"
    )
    program.add_argument(
        "--steps", type=numbers.positive, default=32, metavar="N", help="tokens, with the prompt's"
    )
    program.add_argument(
        "--timeout", type=numbers.above_0, default=60, metavar="S", help="seconds for its run"
    )
    dump = parser.add_argument_group("a dump of another program")
    dump.add_argument(
        "--against",
        metavar="FILE",
        help="compare with hidden states or logits, .npz or .safetensors, or llm.c's debug state",
    )
    dump.add_argument(
        "--precision", choices=UNITS, metavar="P", help=f"what it computed in: {one_of(UNITS)}"
    )
    dump.add_argument(
        "--layout", choices=LAYOUTS, metavar="L", help=f"of its hidden states: {one_of(LAYOUTS)}"
    )
    dump.add_argument(
        "--rope-order",
        choices=ROPE_ORDERS,
        metavar="O",
        help=f"of its queries and keys: {one_of(ROPE_ORDERS)} (default: found out, as the others)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def main(options: argparse.Namespace) -> int:
    """Exit code 0: everything is inside its bound; 1: something is outside."""
    import json

    from pyllm2.observe.judge import require_bounds

    require_bounds()
    for flag in ("precision", "layout", "rope_order"):
        if getattr(options, flag) is not None and options.against is None:
            raise UsageError(f"--{flag.replace('_', '-')}: only with --against")
    if options.train is not None and options.against is not None:
        raise UsageError("--train: not with --against")
    of = _of_dump if options.against else _of_training if options.train else _of_backends
    if options.program:
        of = _of_program
    if options.explain:
        return _explain(options)
    report = of(options)
    text = json.dumps(report.as_json()) if options.json else str(report)
    Output().write(f"{text}\n".encode())
    return 0 if report.passed else 1


def _of_backends(options: argparse.Namespace) -> Report:
    from pyllm2.observe.diff import prepared
    from pyllm2.observe.isolated import compare_safely

    names = _names(options)
    if options.prompt is None:
        options.prompt = PROMPT
    model, prompt = open_with_prompt(options, backend="numpy")
    standard, title = prepared(model, names, prompt, options.backward)
    return compare_safely(standard, names, title)


def _explain(options: argparse.Namespace) -> int:
    """Print the error budget; exit code 0."""
    import json

    from pyllm2.observe.explain import explain

    for flag in ("against", "train", "backward"):
        if getattr(options, flag):
            raise UsageError(f"--explain: not with --{flag}")
    names = _names(options)
    options.prompt = PROMPT if options.prompt is None else options.prompt
    model, prompt = open_with_prompt(options, backend="numpy")
    budget = explain(model, prompt, names)
    text = json.dumps(budget.as_json()) if options.json else str(budget)
    Output().write(f"{text}\n".encode())
    return 0


def _names(options: argparse.Namespace) -> list[str]:
    from pyllm2 import backends

    able = [name for name in backends.NAMES if backends.why_not(name) is None]
    names = options.backends or able
    for name in names:
        backends.require(name)
    return names


def _of_training(options: argparse.Namespace) -> Report:
    from pyllm2.observe.lockstep import Hyper, lockstep

    names = _names(options)
    if options.prompt is not None or options.ids is not None:
        raise UsageError("--train: batches come from --data or are random: leave the prompt out")
    options.ids = "0"  # no tokenizer is needed
    model, _ = open_with_prompt(options, backend="numpy")
    T = options.seq_len or min(16, model.config.seq_len)
    if model.config.seq_len < T:
        raise UsageError(f"--seq-len: {T}: the model has {model.config.seq_len} positions")
    batches = _batches(options, model.config.vocab_size, T)
    return lockstep(model, names, batches, Hyper(options.learning_rate), options.out)


def _batches(options: argparse.Namespace, V: int, T: int) -> Iterator[Any]:
    import numpy as np

    if options.data:
        from pyllm2.training.loader import DataLoader

        loader = DataLoader(options.data, options.batch_size, T, vocab_size=V)
        for _ in range(options.train):
            yield loader.next_batch()
        return
    random = np.random.default_rng(options.seed)
    for _ in range(options.train):
        ids = random.integers(0, V, (options.batch_size, T + 1))
        yield ids[:, :-1], ids[:, 1:]


def _of_program(options: argparse.Namespace) -> Report:
    import os

    from pyllm2.cli.loading import find_tokenizer
    from pyllm2.conform.adapter import RUN_C, Adapter, parse, program_of
    from pyllm2.conform.child import Limits
    from pyllm2.conform.given import text_of_given
    from pyllm2.observe.text import compare_text
    from pyllm2.observe.trace import prompt_ids

    for flag in ("against", "train", "backward", "backends", "ids"):
        if getattr(options, flag):
            raise UsageError(f"--{flag}: not with a program")
    if options.model is None:
        raise UsageError("MODEL: name the checkpoint that the program reads")
    template = parse(options.args or RUN_C)
    beside = "" if "tokenizer" in template.words else "tokenizer.bin"
    adapter = Adapter(
        program_of(options.program), template, beside, limits=Limits(seconds=options.timeout)
    )
    options.prompt = PROMPT if options.prompt is None else options.prompt
    model, prompt = open_with_prompt(options, backend="numpy")
    S = model.config.seq_len
    ids = prompt_ids(model, prompt)
    if not len(ids) <= options.steps < S:
        raise UsageError(f"--steps: {options.steps}: expected {len(ids)} to {S - 1}")
    tokenizer = options.tokenizer or find_tokenizer(options.model)
    text = text_of_given(adapter, options.model, tokenizer, prompt, options.steps)
    return compare_text(model, ids, options.steps, text, os.path.basename(options.program[0]))


def _of_dump(options: argparse.Namespace) -> Report:
    from pyllm2.observe.against import Given, against
    from pyllm2.observe.debug_state import against_debug_state, is_debug_state

    for flag in ("backends", "backward"):
        if getattr(options, flag):
            raise UsageError(f"--{flag}: not with --against, which compares with a float64 run")
    state = is_debug_state(options.against)
    given = options.prompt is not None or options.ids is not None
    if state and given:
        raise UsageError("--against: a debug state has tokens of its own: leave the prompt out")
    if options.prompt is None:
        options.prompt = PROMPT
    model, prompt = open_with_prompt(options, backend="numpy")
    if state:
        return against_debug_state(model, options.against)
    how = Given(options.precision, options.layout, options.rope_order)
    return against(model, options.against, prompt if given else None, how)
