"""Lines on stderr about speed. Compiling is not part of it: it happens before the clock starts."""

from __future__ import annotations

import time
from contextlib import suppress

from pyllm2.cli.output import say
from pyllm2.errors import NotFiniteError
from pyllm2.inference.generate import Generation
from pyllm2.inference.language_model import LanguageModel

NOTICEABLE = 0.5  # seconds
LONG = 64  # tokens: a prompt of so many needs every kernel, one of a few only those of a step


def warm_up(model: LanguageModel, prompt_tokens: int = LONG) -> None:
    """Compile or load the kernels of such a prompt and of a single step, in a session of its own.

    It prints how long that took, if it was noticeable. The backends that run no compiler during
    a forward pass are left alone.
    """
    if not model.backend.startswith("numba") or model.config.seq_len < 4:
        return
    began = time.perf_counter()
    n = max(2, min(prompt_tokens, model.config.seq_len - 1, LONG))
    session = model.start(n + 1)
    with suppress(NotFiniteError):  # the generation itself refuses such a model
        session.feed([0] * n, last_only=True)
        session.feed([0])
    seconds = time.perf_counter() - began
    if seconds > NOTICEABLE:
        say(f"kernels of backend {model.backend} compiled or loaded in {seconds:.1f} s")


def report_speed(generation: Generation, seed: int) -> None:
    """Print backend, seed, number of tokens, and the speed of the tokens after the first."""
    n, seconds = generation.new_tokens, generation.seconds
    rate = f" at {(n - 1) / seconds:.1f} tokens/s" if n > 1 and seconds > 0 else ""
    say(
        f"backend {generation.session.backend}, seed {seed}, "
        f"prompt {len(generation.prompt)} tokens in {generation.prompt_seconds:.2f} s, "
        f"{n} new tokens{rate}"
    )
