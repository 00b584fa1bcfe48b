"""`pyllm2 generate`: continue a prompt, streaming."""

from __future__ import annotations

import argparse
from itertools import chain, islice

from pyllm2.cli.common import (
    Clock,
    argument_bytes,
    open_model,
    pick_seed,
    positions_of,
    read_bytes,
    say,
)
from pyllm2.cli.output import Output
from pyllm2.errors import ContextError
from pyllm2.generate import generate_ids
from pyllm2.sampling import Sampler


def main(options: argparse.Namespace) -> int:
    output = Output()
    model = open_model(options)
    if options.prompt_file is not None:
        prompt = read_bytes(options.prompt_file)
    else:
        prompt = argument_bytes(options.prompt)
    tokenizer = model.tokenizer
    ids = tokenizer.encode_prompt(prompt)

    S = positions_of(options, model)
    if len(ids) > S:
        raise ContextError(f"prompt is {len(ids)} tokens, context is {S}")
    session = model.start(min(S, len(ids) + options.max_new_tokens))
    seed = pick_seed(options)
    sampler = Sampler(options.temperature, options.top_p, seed)
    stop = tokenizer.stop
    if options.ignore_eos:
        stop = tuple(i for i in stop if i != tokenizer.end)

    clock = Clock(session, len(ids))
    tokens = generate_ids(session, ids, sampler, options.max_new_tokens, stop)
    first = list(islice(tokens, 1))  # before the echo: a model that is refused prints nothing
    if not options.no_echo:
        output.write(prompt)
    last = ids[-1]
    try:
        for token in chain(first, tokens):
            clock.tick()
            output.write(tokenizer.decode_one(token, at_start=last == tokenizer.begin))
            last = token
    finally:
        output.write(b"\n", end=True)
    if session.room == 0 and clock.tokens < options.max_new_tokens:
        say(f"the context of {S} tokens is full: stopped after {clock.tokens} new tokens")
    clock.report(seed)
    return 0
