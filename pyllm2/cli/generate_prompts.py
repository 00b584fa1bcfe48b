"""`pyllm2 generate --prompts FILE`: every line is a prompt, and they are continued together."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from pyllm2.cli.inputs import read_bytes
from pyllm2.cli.output import Output, say
from pyllm2.errors import ChatTemplateError, ContextError, FormatError, TokenizerError

if TYPE_CHECKING:
    from pyllm2.inference.generate import Generation
    from pyllm2.inference.language_model import LanguageModel


def read_prompts(path: str) -> list[str]:
    """The lines of a file, without what ends them; an empty line is an empty prompt.

    Raises FormatError for a file without a line, or a line that is no UTF-8.
    """
    lines = read_bytes(path).split(b"\n")
    if not lines[-1]:  # after the end of the last line
        lines.pop()
    if not lines:
        raise FormatError(path, "is empty: expected one prompt per line")
    prompts = []
    for number, line in enumerate(lines, 1):
        try:
            prompts.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError as error:
            found = f"line {number} = 0x{line[error.start]:02x} at byte {error.start} of the line"
            raise FormatError(path, f"{found}: expected UTF-8") from None
    return prompts


def generate_prompts(
    options: argparse.Namespace,
    model: LanguageModel,
    prompts: list[str],
    stop: list[int | bytes],
    output: Output,
) -> None:
    """Print every prompt and its text, a blank line between them; with --json one object each."""
    from pyllm2.cli.loading import context_length, pick_seed
    from pyllm2.cli.speed import warm_up

    seed, S = pick_seed(options), context_length(options, model)
    starts = _starts(options, model, prompts, S)
    sampling = options.max_new_tokens, options.temperature, options.top_p, seed
    batch = model.generate_batch(starts, *sampling, stop, S, options.json)
    warm_up(model, max(map(len, starts)))
    for n, (prompt, generation) in enumerate(zip(prompts, batch, strict=True)):
        if options.json:
            found = {"prompt": prompt, **result(generation, (seed + n) % 2**64)}
            output.write(json.dumps(found).encode() + b"\n", end=True)
            continue
        if n:
            output.write(b"\n")
        if not options.no_echo and not options.chat:
            output.write(prompt.encode())
        output.write(b"".join(token.bytes for token in generation) + b"\n", end=True)
    after_first = batch.new_tokens - len(prompts)
    rate = f" at {after_first / batch.seconds:.1f} tokens/s" if batch.seconds > 0 else ""
    say(
        f"backend {model.backend}, seeds from {seed}, {len(prompts)} prompts of "
        f"{sum(map(len, starts))} tokens in {batch.prompt_seconds:.2f} s, "
        f"{batch.new_tokens} new tokens{rate}"
    )


def _starts(
    options: argparse.Namespace, model: LanguageModel, prompts: list[str], S: int
) -> list[list[int]]:
    """The ids of each prompt. Raises FormatError with the number of the line."""
    starts = []
    for number, prompt in enumerate(prompts, 1):
        try:
            start: Any = prompt
            if options.chat:
                from pyllm2.cli.chat import template_of
                from pyllm2.inference.chat import chat_ids

                template = template_of(model, options.chat_template)
                start = chat_ids(model, [{"role": "user", "content": prompt}], template)
            ids = model.prompt_ids(start, S)
            if not ids:
                raise ContextError("is empty, and no token begins a text of this model")
            if len(ids) > S:
                raise ContextError(f"prompt is {len(ids)} tokens, context is {S}")
        except (ContextError, TokenizerError, ChatTemplateError) as error:
            raise FormatError(options.prompts, f"line {number}: {error}") from None
        starts.append(ids)
    return starts


def result(generation: Generation, seed: int) -> dict[str, Any]:
    """What --json prints. Bytes of the text that are no UTF-8 become U+FFFD."""
    tokens = list(generation)
    by = generation.stopped_by
    return {
        "text": b"".join(token.bytes for token in tokens).decode("utf-8", "replace"),
        "ids": [token.id for token in tokens],
        "logprobs": [token.logprob for token in tokens],
        "prompt_ids": generation.prompt,
        "finish_reason": generation.finish_reason,
        "stopped_by": by.decode("utf-8", "replace") if isinstance(by, bytes) else by,
        "timings": {
            "prompt_seconds": generation.prompt_seconds,
            "seconds": generation.seconds,
        },
        "backend": generation.session.backend,
        "seed": seed,
    }
