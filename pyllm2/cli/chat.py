"""`pyllm2 chat`: a conversation in the format that Llama-2-chat models were tuned on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from pyllm2.cli.common import Clock, argument_bytes, open_model, pick_seed, positions_of, say
from pyllm2.cli.output import Output
from pyllm2.errors import ContextError
from pyllm2.generate import generate_ids
from pyllm2.llama2.chat import render
from pyllm2.llama2.tokenizer import EOS
from pyllm2.loading import load_llama2
from pyllm2.sampling import Sampler


def main(options: argparse.Namespace) -> int:
    output = Output()
    model = open_model(options, load_llama2)
    session = model.start(positions_of(options, model))
    seed = pick_seed(options)
    sampler = Sampler(options.temperature, options.top_p, seed)
    system = argument_bytes(options.system)

    unfed: list[int] = []  # a reply's last token, where its length and not the model ended it
    for turn, message in enumerate(_messages(options, output)):
        # The end of the previous reply is fed with the next message, as the models were tuned.
        ids = [*unfed, EOS] if turn else []
        ids += model.tokenizer.encode(render(message, system if turn == 0 else b""))
        if len(ids) > session.room:
            if turn == 0:
                raise ContextError(f"prompt is {len(ids)} tokens, context is {session.room}")
            say(f"the context of {session.cache.positions} tokens is full: the conversation ends")
            return 0
        output.write_raw(b"Assistant: ")
        clock = Clock(session, len(ids))
        try:
            for token in generate_ids(session, ids, sampler, options.max_new_tokens, (EOS,)):
                clock.tick()
                output.write(model.tokenizer.decode_one(token))
                unfed = [token] if clock.tokens == options.max_new_tokens else []
        finally:
            output.write(b"\n", end=True)
        clock.report(seed)
        if session.room == 0:
            say(f"the context of {session.cache.positions} tokens is full: the conversation ends")
            return 0
    return 0


def _messages(options: argparse.Namespace, output: Output) -> Iterator[bytes]:
    """The user's messages: the flag's, then lines of stdin until it ends."""
    if options.prompt is not None:
        yield argument_bytes(options.prompt)
    while sys.stdin is not None:
        output.write_raw(b"User: ")
        line = sys.stdin.buffer.readline()
        if not line:
            output.write_raw(b"\n")
            return
        yield line.rstrip(b"\r\n")
