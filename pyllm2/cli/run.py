"""`pyllm2 run`: a drop-in for the `run` of llama2.c. Same flags, same bytes on stdout.

Its grammar, clamping and quirks are the original's, down to the token after the end of a turn;
`generate` and `chat` are the commands without them. Where the original crashes or reads foreign
memory, this refuses with a line and exit code 1. `--backend NAME` is ours.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import numpy as np

from pyllm2 import backends
from pyllm2.cli.c_numbers import atof, atoi
from pyllm2.cli.common import argument_bytes, say
from pyllm2.cli.output import Output, tell
from pyllm2.errors import PyLLM2Error
from pyllm2.generate import PREFILL_CHUNK, prefill
from pyllm2.language_model import LanguageModel
from pyllm2.llama2.chat import render
from pyllm2.llama2.original import OriginalSampler, piece_bytes, shown
from pyllm2.llama2.tokenizer import BOS, EOS
from pyllm2.loading import load_llama2

USAGE = """\
usage: pyllm2 run MODEL [-x VALUE]...          a drop-in for llama2.c's run
  -t FLOAT  temperature, default 1.0; 0 is greedy
  -p FLOAT  top-p, default 0.9; outside [0, 1] means 0.9; 0 and 1 keep every token
  -s INT    seed, default the clock
  -n INT    steps, prompt included, default 256; 0 means the whole context
  -i TEXT   prompt
  -z FILE   tokenizer, default tokenizer.bin
  -m MODE   generate (default) or chat
  -y TEXT   system prompt of the chat
  --backend NAME  {backends}
"""
LINE_BYTES = 511  # the original's buffer, less its end mark: longer lines answer twice


class OriginalUsageError(PyLLM2Error):
    """The original answers every misuse with its usage and exit code 1, not 2."""


def main(arguments: Sequence[str]) -> int:
    try:
        return _run(arguments)
    except OriginalUsageError:
        if sys.stderr is not None:
            sys.stderr.write(USAGE.format(backends=", ".join(backends.NAMES)))
        raise


def _run(arguments: Sequence[str]) -> int:
    """The order is the original's: flags, clamping, model, steps, vocabulary, sampler, mode."""
    path, flags = _parse(arguments)
    temperature, top_p = _float32(flags.get("t", "1.0")), _float32(flags.get("p", "0.9"))
    if temperature < 0:
        temperature = 0.0
    if top_p < 0 or top_p > 1:  # NaN is neither, and stays
        top_p = 0.9
    seed = atoi(flags.get("s", "0")) or int(time.time()) % 2**32
    steps = max(0, atoi(flags.get("n", "256")))

    output = Output()
    tokenizer = flags.get("z", "tokenizer.bin")
    model = load_llama2(path, tokenizer, flags.get("backend"), lenient=True)
    S = model.config.seq_len
    if steps == 0 or steps > S:
        steps = S
    sampler = OriginalSampler(temperature, top_p, seed % 2**64)
    mode = flags.get("m", "generate")
    if mode == "generate":
        _generate(model, sampler, argument_bytes(flags.get("i", "")), steps, output)
    elif mode == "chat":
        first, system = (argument_bytes(flags[k]) if k in flags else None for k in "iy")
        _chat(model, sampler, first, system, steps, output)
    else:
        raise OriginalUsageError(f"-m {mode!r}: expected generate or chat")
    return 0


def _float32(text: str) -> float:
    """As the original keeps it: 1.00000001 is 1, and so within [0, 1]."""
    with np.errstate(over="ignore"):
        return float(np.float32(atof(text)))


def _parse(arguments: Sequence[str]) -> tuple[str, dict[str, str]]:
    """MODEL, then pairs of a flag and a value, which may begin with a dash; the last one wins."""
    if not arguments:
        raise OriginalUsageError("run: expected MODEL")
    flags: dict[str, str] = {}
    rest = arguments[1:]
    for i in range(0, len(rest), 2):
        flag = rest[i]
        known = len(flag) == 2 and flag[0] == "-" and flag[1] in "tpsnizmy"
        if not (known or flag == "--backend"):
            raise OriginalUsageError(f"run: {flag!r} is not a flag")
        if i + 1 == len(rest):
            raise OriginalUsageError(f"run: {flag} needs a value")
        flags[flag.lstrip("-")] = rest[i + 1]
    return arguments[0], flags


def _generate(
    model: LanguageModel, sampler: OriginalSampler, prompt: bytes, steps: int, output: Output
) -> None:
    """`steps` counts forwards, prompt included. BOS ends the story, EOS does not.

    The original feeds the prompt token by token; we feed it at once, which draws no coins either.
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
        output.write_raw(shown(piece_bytes(model.tokenizer, token, following)))
        token = following
        began = began or time.time()
    output.write_raw(b"\n")
    if pos > 1:
        # The original divides by a millisecond clock and may print inf; so short a time is 1 ms.
        milliseconds = max(1, int(1000 * (time.time() - (began or 0))))
        tell(f"achieved tok/s: {(pos - 1) / milliseconds * 1000:f}")


def _chat(
    model: LanguageModel,
    sampler: OriginalSampler,
    first: bytes | None,
    system: bytes | None,
    steps: int,
    output: Output,
) -> None:
    """The original's loop, quirks and all.

    A coin is drawn at every position, also while the prompt is fed. A 2 drawn there prints a
    newline though the draw is discarded. After a 2 that ends a turn, one more token is drawn and
    shown before the user is asked. Every turn begins with BOS; steps bound the whole conversation.
    """
    session = model.start(steps)
    lines = _Lines(output)
    prompt: list[int] = []
    fed = 0  # how much of the prompt has been fed
    token = following = 0
    user_turn = True
    logits = np.empty((0, 0), np.float32)  # of the chunk of the prompt that was fed last
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
            output.write_raw(shown(piece_bytes(model.tokenizer, token, following)))
        if following == EOS:
            output.write_raw(b"\n")
    output.write_raw(b"\n")
    if session.room == 0:
        say(f"the conversation has used its {steps} steps")


class _Lines:
    """Answers from stdin, each asked for; at the end of input the last one again."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.last: dict[str, bytes] = {}

    def ask(self, question: str, who: str) -> bytes | None:
        """A line of at most 511 bytes (a longer one answers the next question too), or None."""
        self.output.write_raw(question.encode())
        line = b"" if sys.stdin is None else sys.stdin.buffer.readline(LINE_BYTES)
        if line:
            self.last[who] = line.removesuffix(b"\n").split(b"\0", 1)[0]
        return self.last.get(who)
