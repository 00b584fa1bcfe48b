"""The two loops of llama2.c's run, generate and chat, with the original's output byte for byte."""

from __future__ import annotations

import time

import numpy as np

from pyllm2.cli.output import Output, say, tell
from pyllm2.formats import standard_input
from pyllm2.inference.generate import PREFILL_CHUNK, prefill
from pyllm2.inference.language_model import LanguageModel
from pyllm2.inference.original import OriginalSampler, piece_bytes, shown
from pyllm2.tokenizers.chat import render
from pyllm2.tokenizers.sentencepiece import BOS, EOS

LINE_BYTES = 511  # the original's buffer without the terminating NUL


def generate(
    model: LanguageModel, sampler: OriginalSampler, prompt: bytes, steps: int, output: Output
) -> None:
    """Continue a prompt. `steps` counts forward passes, prompt included; BOS ends it, EOS does not.

    The original feeds the prompt token by token. Here it is fed at once: the random numbers are
    the same, because none is drawn while the prompt lasts.
    """
    ids = model.tokenizer.encode(prompt)
    if len(ids) > steps:
        say(f"the prompt is {len(ids)} tokens, {steps} steps: it is cut and nothing follows")
    session = model.start(steps)
    forced = ids[1 : steps + 1]
    began = None
    token, pos = ids[0], 0
    logits = prefill(session, ids) if len(ids) <= steps else np.empty(0, np.float32)
    for pos in range(1, steps + 1):
        if pos <= len(forced):
            following = forced[pos - 1]
        else:
            if pos > len(ids):
                logits = session.feed([token])[-1]
            following = sampler(logits)
        if following == BOS:
            break
        output.write_piece(shown(piece_bytes(model.tokenizer, token, following)))
        token = following
        began = began or time.time()
    output.write_piece(b"\n")
    if pos > 1:
        # The original's clock counts milliseconds, and it may print inf: take 1 ms at least.
        milliseconds = max(1, int(1000 * (time.time() - (began or 0))))
        tell(f"achieved tok/s: {(pos - 1) / milliseconds * 1000:f}")


def chat(
    model: LanguageModel,
    sampler: OriginalSampler,
    first: bytes | None,
    system: bytes | None,
    steps: int,
    output: Output,
) -> None:
    """A conversation, with the quirks of the original's loop.

    A token is sampled at every position, also while the prompt is fed; there an EOS prints a
    newline although it is discarded. After an EOS that ends a turn, one more token is sampled and
    shown before the user is asked. Every turn begins with BOS; `steps` limits the whole
    conversation.
    """
    session = model.start(steps)
    lines = _Lines(output)
    prompt: list[int] = []
    fed = 0  # tokens of the prompt that have been fed
    token = following = 0
    user_turn = True
    logits = np.empty((0, 0), np.float32)  # of the last chunk of the prompt
    for pos in range(steps):
        if user_turn:
            if pos == 0 and system is None:
                system = lines.ask("Enter system prompt (optional): ", "system")
            user = first if pos == 0 and first is not None else lines.ask("User: ", "user")
            if user is None or (pos == 0 and system is None):
                break  # end of input before the first text
            text = render(user, system or b"") if pos == 0 else render(user)
            prompt, fed, user_turn = model.tokenizer.encode(text), 0, False
            output.write_raw(b"Assistant: ")
        if fed < len(prompt):
            if fed % PREFILL_CHUNK == 0:
                logits = session.feed(prompt[fed : fed + min(PREFILL_CHUNK, session.room)])
            token, row = prompt[fed], logits[fed % PREFILL_CHUNK]
            fed += 1
        else:
            token = following
            row = session.feed([token])[-1]
        if token == EOS:
            user_turn = True
        following = sampler(row)
        if fed == len(prompt) and following != EOS:
            output.write_piece(shown(piece_bytes(model.tokenizer, token, following)))
        if following == EOS:
            output.write_piece(b"\n")
    output.write_piece(b"\n")
    if session.room == 0:
        say(f"the conversation has used its {steps} steps")


class _Lines:
    """Lines of stdin, each after a question; at the end of input the last line is repeated."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.last: dict[str, bytes] = {}

    def ask(self, question: str, who: str) -> bytes | None:
        """At most 511 bytes of a line; the rest answers the next question. None: no line yet."""
        self.output.write_raw(question.encode())
        line = standard_input.read_line(LINE_BYTES)
        if line:
            self.last[who] = line.removesuffix(b"\n").split(b"\0", 1)[0]
        return self.last.get(who)
