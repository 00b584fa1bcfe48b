"""`pyllm2 eval`: `text` is in `eval_text`; `hellaswag`: accuracy on multiple choice."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from pyllm2 import memory
from pyllm2.cli import eval_text, flags, numbers
from pyllm2.cli.output import Output, say
from pyllm2.errors import FileError, printable

SUMMARY = "measure a model: how well it predicts a text, or chooses a completion"
REPORT_EVERY = 10  # batches
CHANCE = 0.25  # one of four


def add_flags(parser: argparse.ArgumentParser) -> None:
    actions = flags.add_actions(parser)
    eval_text.add_flags(
        flags.add_action(
            actions,
            "text",
            "measure how well a model predicts texts: loss per token and byte, perplexity",
        )
    )
    hellaswag = flags.add_action(
        actions,
        "hellaswag",
        "choose the completion with the lowest mean loss per token, and count correct choices",
    )
    hellaswag.add_argument("model", metavar="MODEL", help="checkpoint of llm.c or llama2.c")
    hellaswag.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="evaluation file of llm.c (hellaswag_val.bin), which `data hellaswag` makes",
    )
    hellaswag.add_argument(
        "--batch",
        type=numbers.positive,
        default=1,
        metavar="N",
        help="examples per forward pass, 4 rows each",
    )
    hellaswag.add_argument("--json", action="store_true", help="print one object")
    flags.add_machine(hellaswag)
    flags.add_no_mpi(hellaswag)


def main(options: argparse.Namespace) -> int:
    if options.action == "text":
        return eval_text.main(options)
    from pyllm2.cli import ranks

    with ranks.of_this_run(options) as processes:
        return _hellaswag(options, processes)


def _hellaswag(options: argparse.Namespace, processes: Any) -> int:
    """Each rank answers its share of the examples; rank 0 prints the sum."""
    loader, model = processes.together(lambda: _prepare(options, processes))
    from pyllm2.training.evaluation import evaluate

    progress = _progress if processes.rank == 0 else None
    correct = sum(processes.each(evaluate(model.trainable, loader, progress)))
    total = loader.num_examples
    if processes.rank == 0:
        share = correct / total
        error = math.sqrt(share * (1 - share) / total)
        if options.json:
            result = {"correct": correct, "examples": total, "accuracy": share, "chance": CHANCE}
            Output().write(json.dumps({**result, "standard_error": error}).encode() + b"\n")
        else:
            Output().write(f"HellaSwag: {correct}/{total} = {share:f}\n".encode())
            say(f"accuracy {share:.4f} ± {error:.4f}, chance {CHANCE}")
    return 0


def _prepare(options: argparse.Namespace, processes: Any) -> tuple[Any, Any]:
    """The loader of this rank's examples, and the model."""
    from pyllm2.formats.llmc_evaluation import COMPLETIONS, read_examples
    from pyllm2.inference.load import load
    from pyllm2.training.evaluation import EvalLoader, needed_positions

    model = load(options.model, backend=options.backend, threads=options.threads)
    S, V = model.config.seq_len, model.config.vocab_size
    T = max(map(needed_positions, read_examples(options.data)))
    if T > S:
        raise FileError(options.data, f"needs {T} positions, {printable(options.model)} has {S}")
    B = COMPLETIONS * options.batch
    memory.require(4 * B * T * 2 * V, f"logits of {B} rows of {T}", "lower --batch")
    share = processes.rank, processes.size
    return EvalLoader(options.data, B, T, *share, vocab_size=V), model


def _progress(done: int, batches: int) -> None:
    if done % REPORT_EVERY == 0 and done < batches:
        say(f"batch {done} of {batches}")
