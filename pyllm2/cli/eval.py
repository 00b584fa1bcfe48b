"""`pyllm2 eval hellaswag`: accuracy of a model on multiple-choice completions."""

from __future__ import annotations

import argparse
from typing import Any

from pyllm2 import memory
from pyllm2.cli import flags, numbers
from pyllm2.cli.output import Output, say
from pyllm2.errors import FileError, printable

SUMMARY = "measure the accuracy of a model on an evaluation set"
REPORT_EVERY = 10  # batches


def add_flags(parser: argparse.ArgumentParser) -> None:
    hellaswag = flags.add_action(
        flags.add_actions(parser),
        "hellaswag",
        "choose the completion with the lowest mean loss per token, and count correct choices",
    )
    hellaswag.add_argument("model", metavar="MODEL", help="checkpoint of llm.c or llama2.c")
    hellaswag.add_argument(
        "--data", required=True, metavar="FILE", help="evaluation file of llm.c: hellaswag_val.bin"
    )
    hellaswag.add_argument(
        "--batch",
        type=numbers.positive,
        default=1,
        metavar="N",
        help="examples per forward pass, 4 rows each",
    )
    flags.add_machine(hellaswag)
    flags.add_no_mpi(hellaswag)


def main(options: argparse.Namespace) -> int:
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
        Output().write(f"HellaSwag: {correct}/{total} = {correct / total:f}\n".encode())
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
