"""`pyllm2 run`: a drop-in for the `run` of llama2.c. Same flags, same bytes on stdout.

The grammar, the clamping of numbers and the quirks are the original's; `generate` and `chat` are
the commands without them. Where the original crashes or reads memory that is not its own, this
prints one line and exits with code 1. `--backend NAME` is the only flag that the original lacks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from pyllm2 import backends
from pyllm2.cli.inputs import argument_bytes
from pyllm2.cli.output import Output
from pyllm2.errors import FileError, PyLLM2Error

SUMMARY = "drop-in for llama2.c's run: pyllm2 run MODEL [-t -p -s -n ...]"
USAGE = """\
usage: pyllm2 run MODEL [-x VALUE]...          a drop-in for llama2.c's run
  -t FLOAT  temperature, default 1.0; 0 is greedy
  -p FLOAT  top-p, default 0.9; outside [0, 1] means 0.9; 0 and 1 keep every token
  -s INT    seed, default the clock
  -n INT    steps, prompt included, default 256; 0 means the whole context
  -i TEXT   prompt, default empty
  -z FILE   tokenizer, default tokenizer.bin
  -m MODE   generate (default) or chat
  -y TEXT   system prompt of the chat
  --backend NAME  {backends}
"""


class OriginalUsageError(PyLLM2Error):
    """A misuse: like the original, the usage text and exit code 1, not 2."""


def main(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help"):
        Output().write(USAGE.format(backends=", ".join(backends.NAMES)).encode())
        return 0
    try:
        return _run(arguments)
    except OriginalUsageError:
        if sys.stderr is not None:
            sys.stderr.write(USAGE.format(backends=", ".join(backends.NAMES)))
        raise


def _run(arguments: Sequence[str]) -> int:
    """The original's order: flags, clamping, model, steps, tokenizer, sampler, mode."""
    from pyllm2.cli import original_loops
    from pyllm2.cli.original import atof, atoi, float32
    from pyllm2.cli.speed import warm_up
    from pyllm2.inference.load import load_llama2
    from pyllm2.inference.original import OriginalSampler
    from pyllm2.tokenizers.sentencepiece import SentencePieceTokenizer

    path, flags = _parse(arguments)
    temperature, top_p = float32(atof(flags.get("t", "1.0"))), float32(atof(flags.get("p", "0.9")))
    if temperature < 0:
        temperature = 0.0
    if top_p < 0 or top_p > 1:  # false for NaN, which stays
        top_p = 0.9
    seed = atoi(flags.get("s", "0")) or int(time.time()) % 2**32
    steps = max(0, atoi(flags.get("n", "256")))

    output = Output()
    tokenizer = flags.get("z", "tokenizer.bin")
    model = load_llama2(path, tokenizer, flags.get("backend"), lenient=True)
    if not isinstance(model.tokenizer, SentencePieceTokenizer):
        raise FileError(tokenizer, "is a GPT-2 tokenizer: expected one of llama2.c")
    S = model.config.seq_len
    if steps == 0 or steps > S:
        steps = S
    sampler = OriginalSampler(temperature, top_p, seed % 2**64)
    mode = flags.get("m", "generate")
    if mode not in ("generate", "chat"):
        raise OriginalUsageError(f"-m {mode!r}: expected generate or chat")
    warm_up(model)
    if mode == "generate":
        prompt = argument_bytes(flags.get("i", ""))
        original_loops.generate(model, sampler, prompt, steps, output)
    else:
        first, system = (argument_bytes(flags[k]) if k in flags else None for k in "iy")
        original_loops.chat(model, sampler, first, system, steps, output)
    return 0


def _parse(arguments: Sequence[str]) -> tuple[str, dict[str, str]]:
    """MODEL, then pairs of a flag and its value, which may begin with a dash; the last one wins."""
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
