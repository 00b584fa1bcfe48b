"""`pyllm2 eval hellaswag`: how often the likeliest completion is the right one."""

from __future__ import annotations

import argparse

from pyllm2 import backends, memory
from pyllm2.cli.common import say
from pyllm2.cli.output import Output
from pyllm2.errors import FileError, printable
from pyllm2.formats.evaluation import COMPLETIONS, read_examples
from pyllm2.gpt2.files import load_parameters
from pyllm2.gpt2.model import GPT2
from pyllm2.training.evaluation import EvalLoader, evaluate, needed_positions

SAID_EVERY = 10  # batches


def main(options: argparse.Namespace) -> int:
    config, params = load_parameters(options.model)
    T, S = max(map(needed_positions, read_examples(options.data))), config.max_seq_len
    if T > S:
        raise FileError(options.data, f"needs {T} positions, {printable(options.model)} has {S}")
    B = COMPLETIONS * options.batch
    memory.require(
        4 * B * T * 2 * config.padded_vocab_size, f"logits of {B} rows of {T}", "lower --batch"
    )
    loader = EvalLoader(options.data, B, T, vocab_size=config.vocab_size)
    ops = backends.ops(options.backend or backends.default(), options.threads, "gpt2")
    correct = evaluate(GPT2(config, params, ops), loader, _progress)
    total = loader.num_examples
    Output().write(f"HellaSwag: {correct}/{total} = {correct / total:f}\n".encode())
    return 0


def _progress(done: int, batches: int) -> None:
    if done % SAID_EVERY == 0 and done < batches:
        say(f"batch {done} of {batches}")
