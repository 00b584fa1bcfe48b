"""`pyllm2 generate`: continue a prompt; the text is printed as it is made."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from pyllm2.cli import flags, numbers
from pyllm2.cli.generate_prompts import generate_prompts, read_prompts, result
from pyllm2.cli.inputs import argument_bytes, read_bytes
from pyllm2.cli.output import Output, say
from pyllm2.errors import FormatError, UsageError, printable

if TYPE_CHECKING:
    from pyllm2.inference.language_model import LanguageModel

SUMMARY = "continue a prompt"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="file or folder of any kind (default: our story model)",
    )
    flags.add_loading(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", default="", metavar="TEXT", help="the prompt (default: empty)")
    prompt.add_argument(
        "--prompt-file", metavar="FILE", help="read the prompt from FILE (-: standard input)"
    )
    prompt.add_argument(
        "--messages",
        metavar="FILE",
        help="JSON messages to reply to, as chat saves them",
    )
    parser.add_argument("--prompts", metavar="FILE", help="continue each line of FILE, 16 at once")
    parser.add_argument("--chat", action="store_true", help="send the prompt as chat does")
    flags.add_chat_template(parser)
    flags.add_stop(parser)
    flags.add_sampling(parser)
    parser.add_argument(
        "--max-new-tokens",
        type=numbers.count,
        default=256,
        metavar="N",
        help="maximum number of new tokens",
    )
    parser.add_argument(
        "--ignore-eos", action="store_true", help="do not stop at the end-of-text token"
    )
    parser.add_argument("--no-echo", action="store_true", help="do not print the prompt")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one object: ids, text, logprobs, timings",
    )


def main(options: argparse.Namespace) -> int:
    from pyllm2.cli.loading import context_length, open_model, pick_seed
    from pyllm2.cli.speed import report_speed, warm_up

    output = Output()
    _refuse_a_prompt(options.model)
    if options.prompts is not None:
        if options.prompt or options.prompt_file is not None or options.messages is not None:
            raise UsageError("--prompts: not allowed with another prompt (see generate --help)")
        prompts = read_prompts(options.prompts)
    model = open_model(options)
    stop = _stop(options, model)
    if options.prompts is not None:
        generate_prompts(options, model, prompts, stop, output)
        return 0
    if options.prompt_file is not None:
        prompt = read_bytes(options.prompt_file)
    else:
        prompt = argument_bytes(options.prompt)
    messages = _messages(options, prompt)
    start: bytes | list[int] = prompt
    if messages is not None:
        from pyllm2.cli.chat import template_of
        from pyllm2.inference.chat import chat_ids

        start = chat_ids(model, messages, template_of(model, options.chat_template))
    if not start and not model.prompt_ids(start, 1):
        words = "no token begins a text of this model"
        raise UsageError(f"the prompt is empty, and {words}: --prompt TEXT")
    seed = pick_seed(options)
    tokens = model.generate(
        start,
        options.max_new_tokens,
        options.temperature,
        options.top_p,
        seed,
        stop,
        context_length(options, model),
        logprobs=options.json,
    )
    warm_up(model, len(tokens.prompt))

    if options.json:
        output.write(json.dumps(result(tokens, seed)).encode() + b"\n", end=True)
        return 0
    first = list(islice(tokens, 1))  # before the echo: a model that is refused prints nothing
    if not options.no_echo and messages is None:
        output.write(prompt)
    try:
        for token in chain(first, tokens):
            output.write(token.bytes)
    finally:
        output.write(b"\n", end=True)
    if tokens.session.room == 0 and tokens.new_tokens < options.max_new_tokens:
        S, n = tokens.session.positions, tokens.new_tokens
        say(f"the context of {S} tokens is full: stopped after {n} new tokens")
    if tokens.new_tokens == 0 and isinstance(tokens.stopped_by, int):
        can_go_on = tokens.stopped_by == model.tokenizer.end and not options.ignore_eos
        say(f"the model ended the text at once{'; --ignore-eos goes on' if can_go_on else ''}")
    report_speed(tokens, seed)
    return 0


def _stop(options: argparse.Namespace, model: LanguageModel) -> list[int | bytes]:
    """The ids and texts that end a text."""
    ids: list[int] = list(model.stop)
    if options.ignore_eos:  # what begins a text still ends it, as in llama2.c
        begin, end = model.tokenizer.begin, model.tokenizer.end
        ids = [i for i in ids if i == begin and i != end] or [-1]  # no id at all
    return [*ids, *(argument_bytes(text) for text in options.stop)]


def _refuse_a_prompt(model: str | None) -> None:
    """Raises UsageError for a MODEL that is a text and no file."""
    if model is not None and " " in model and "\n" not in model and not os.path.exists(model):
        text = shlex.quote(printable(model))
        raise UsageError(f"{text} is no file: to continue a text, --prompt {text}")


def _messages(options: argparse.Namespace, prompt: bytes) -> list[dict[str, Any]] | None:
    """Those of --messages, or the prompt as one with --chat; None: a plain prompt.

    Raises FormatError for a file that is no JSON list of messages.
    """
    if options.messages is None:
        text = prompt.decode("utf-8", "surrogateescape")
        return [{"role": "user", "content": text}] if options.chat else None
    try:
        found = json.loads(read_bytes(options.messages))
    except (ValueError, RecursionError) as error:
        raise FormatError(options.messages, f"is no JSON: {error}") from None
    if isinstance(found, dict):
        found = found.get("messages")
    if not isinstance(found, list) or not all(isinstance(message, dict) for message in found):
        raise FormatError(options.messages, "expected a JSON list of messages: role, content")
    return found
