"""The flags of a training run: those that both families have, and the defaults of each."""

from __future__ import annotations

import argparse
from typing import Any

from pyllm2.cli import numbers
from pyllm2.cli.flags import add_machine, add_no_mpi, one_of
from pyllm2.cli.outputs import add_force, output

# The names that pyllm2.training has, which is too heavy to import here; a test compares them.
SCHEDULES = ("constant", "linear", "cosine", "wsd", "llama2")
DECAY_RULES = ("matrices", "all")
REPLACE_RUN = "begin a new run in place of the one in FOLDER"


def add_gpt2_flags(parser: argparse.ArgumentParser) -> None:
    _add_run(
        parser,
        "checkpoint of llm.c; folder of a run of llm.c (with state_N_RANK.bin), which goes on; "
        "or the shape of a new model: d12, gpt3:c768 or "
        "layers=N,heads=N,channels=N (optional: ,context=N ,vocab=N)",
    )
    parser.set_defaults(family="gpt2", dropout=0.0)


def add_llama2_flags(parser: argparse.ArgumentParser) -> None:
    """The defaults are llama2.c's, except for a batch that suits a CPU."""
    optimizer = _add_run(
        parser,
        "checkpoint of llama2.c, or the shape of a new model: 260K, 15M, 42M, 110M or "
        "dim=N,layers=N,heads=N (optional: ,kv_heads=N ,hidden=N ,context=N ,vocab=N)",
    )
    _flag(optimizer, "--dropout P", numbers.dropout, 0.0, "dropout probability")
    parser.set_defaults(
        family="llama2",
        batch=16,
        context=256,
        learning_rate=5e-4,
        warmup=100,
        schedule="llama2",
        weight_decay=0.1,
        seed=1337,
    )


def _flag(group: Any, spec: str, kind: Any, default: object, text: str) -> None:
    """spec: name and metavar   kind: a type, or a tuple of choices"""
    name, metavar = spec.split()
    how = {"choices": kind} if isinstance(kind, tuple) else {"type": kind}
    group.add_argument(name, default=default, metavar=metavar, help=text, **how)


def _add_run(parser: argparse.ArgumentParser, init: str) -> Any:
    """The flags that both families have; returns the group of the optimizer."""
    _add_files(parser.add_argument_group("model and data"), init)
    _add_batch(parser.add_argument_group("batch and length"))
    optimizer = parser.add_argument_group("optimizer")
    _add_optimizer(optimizer)
    _add_intervals(parser.add_argument_group("validation, samples, checkpoints"))
    machine = parser.add_argument_group("backend and processes")
    add_machine(machine)
    machine.add_argument(
        "--zero",
        type=int,
        choices=(0, 1),
        default=1,
        help="under mpiexec: 1 (ZeRO-1) keeps 1/N of the moments on each of N processes, 0 keeps "
        "all; the numbers are the same",
    )
    add_no_mpi(machine)
    return optimizer


def _add_files(group: Any, init: str) -> None:
    add = group.add_argument
    add("--init", metavar="MODEL", help=init)
    add("--train", nargs="+", metavar="GLOB", help="training token shards: files or patterns")
    add("--val", nargs="+", metavar="GLOB", help="validation token shards: files or patterns")
    add(
        "--out",
        type=output,
        required=True,
        metavar="FOLDER",
        help="folder for the log, checkpoints and the trained model.bin",
    )
    add(
        "--tokenizer",
        metavar="FILE",
        help="tokenizer file, gpt2 or bytes: sets the vocabulary size, decodes samples "
        "(default: tokenizer.bin beside the training shards)",
    )


def add_extend(parser: Any) -> None:
    parser.add_argument(
        "--extend",
        type=numbers.positive,
        metavar="N",
        help="resume, and put the end of the run N updates further; the learning rate is then "
        "that of the longer run",
    )


def add_other_engine(parser: Any) -> None:
    parser.add_argument(
        "--other-engine",
        action="store_true",
        help="with --resume: also if backend or threads have changed; the last bits may differ",
    )


def add_json(parser: Any) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print events on stdout, one JSON object per line"
    )


def _add_batch(group: Any) -> None:
    total = "tokens per update, a multiple of batch × context (default: one batch)"
    seed = "random seed of the data order, new weights and dropout, 0 to 2^32 - 1"
    for spec, kind, default, text in (
        ("--batch N", numbers.positive, 4, "rows per forward pass"),
        ("--context N", numbers.positive, 64, "tokens per row"),
        ("--total-batch N", numbers.positive, None, total),
        ("--steps N", numbers.positive, None, "number of updates (default: one epoch)"),
        ("--seed N", numbers.seed32, 42, seed),
    ):
        _flag(group, spec, kind, default, text)


def _add_optimizer(group: Any) -> None:
    number = numbers.at_least_0
    schedule = f"learning-rate schedule: {one_of(SCHEDULES)}"
    final = "final learning rate, as a fraction of the peak"
    decay = "parameters that decay: matrices, as in llm.c on a GPU, or all, as in llm.c on a CPU"
    far = "is more than Z standard deviations above the last 128 (0: never)"
    for spec, kind, default, text in (
        ("--learning-rate X", number, 3e-4, "peak learning rate"),
        ("--warmup N", numbers.count, 0, "warm-up updates"),
        ("--schedule NAME", SCHEDULES, "cosine", schedule),
        ("--final-fraction X", numbers.fraction, 0.0, final),
        ("--weight-decay X", number, 0.0, "AdamW weight decay"),
        ("--decay WHAT", DECAY_RULES, "matrices", decay),
        ("--beta1 X", numbers.beta, 0.9, "AdamW beta1 (decay rate of the first moment)"),
        ("--beta2 X", numbers.beta, 0.95, "AdamW beta2 (decay rate of the second moment)"),
        ("--clip X", number, 1.0, "clip the gradient norm to X (0: off)"),
        ("--skip-loss-z Z", number, 0.0, f"skip an update whose loss {far}"),
        ("--skip-norm-z Z", number, 0.0, f"skip an update whose gradient norm {far}"),
    ):
        _flag(group, spec, kind, default, text)


def _add_intervals(group: Any) -> None:
    save = "save a checkpoint every N updates; 0: only at the end (default: every 10 minutes)"
    for spec, kind, default, text in (
        ("--val-every N", numbers.count, 20, "validate every N updates (0: only at the end)"),
        ("--val-batches N", numbers.count, 20, "batches per validation (0: all)"),
        ("--sample-every N", numbers.count, 0, "generate a sample every N updates (0: never)"),
        ("--sample-tokens N", numbers.count, 64, "tokens per sample"),
        ("--save-every N", numbers.count, None, save),
        ("--keep N", numbers.positive, 2, "number of newest checkpoints to keep"),
    ):
        _flag(group, spec, kind, default, text)
    add = group.add_argument
    add(
        "--resume",
        action="store_true",
        help="resume from the newest checkpoint in FOLDER, with the flags of its run",
    )
    add_extend(group)
    add_other_engine(group)
    add_json(group)
    add(
        "--plot",
        type=output,
        metavar="FILE",
        help="file of the loss plot (default: FOLDER/loss.png)",
    )
    add_force(group, REPLACE_RUN)
