"""`pyllm2 chat`: a conversation in the format that the model was tuned on."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from pyllm2.cli import flags, numbers, signals
from pyllm2.cli.inputs import argument_bytes, read_line
from pyllm2.cli.output import Output, is_terminal, say, tell
from pyllm2.errors import ChatTemplateError, ContextError

if TYPE_CHECKING:
    from pyllm2.inference.conversation import Conversation
    from pyllm2.inference.language_model import LanguageModel
    from pyllm2.tokenizers.chat_template import ChatTemplate

SUMMARY = "talk to a chat model, in the format that it was tuned on"
EXAMPLE = """\
example:
  pyllm2 chat ./SmolLM2-135M-Instruct --system 'Answer in one sentence.'"""
YOU, MODEL = "User: ", b"Assistant: "


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLE
    parser.add_argument("model", metavar="MODEL", help="a chat model: folder or file")
    flags.add_loading(parser)
    parser.add_argument(
        "--system", default="", metavar="TEXT", help="the system prompt (default: none)"
    )
    parser.add_argument(
        "--prompt", metavar="TEXT", help="the first message; the others are read from stdin"
    )
    flags.add_chat_template(parser)
    flags.add_stop(parser)
    flags.add_sampling(parser)
    parser.add_argument(
        "--max-new-tokens",
        type=numbers.count,
        default=1024,
        metavar="N",
        help="maximum number of tokens per reply",
    )


def main(options: argparse.Namespace) -> int:
    from pyllm2.cli.chat_commands import Commands
    from pyllm2.cli.loading import context_length, open_model, pick_seed
    from pyllm2.cli.speed import warm_up
    from pyllm2.inference.conversation import Conversation
    from pyllm2.inference.sampling import Sampler

    output = Output()
    model = open_model(options)
    template = template_of(model, options.chat_template)
    system = os.fsdecode(argument_bytes(options.system))
    conversation = Conversation(model, template, system, context_length(options, model))
    commands = Commands(conversation)
    interactive = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    seed = pick_seed(options)
    turns = _Turns(conversation, options, Sampler(options.temperature, options.top_p, seed), seed)
    turns.check()  # a model that cannot chat is refused before the first question
    warm_up(model)
    if interactive:
        tell("/help shows the commands, Ctrl-C ends an answer, Ctrl-D the chat")
    for line in _lines(options, output, interactive):
        if not line.strip():
            continue
        if line.startswith("/") and not line.startswith("//"):
            if not commands.run(line):
                break
            continue
        turns.take(line.removeprefix("/") if line.startswith("//") else line, output, interactive)
    return 0


def template_of(model: LanguageModel, named: str | None) -> ChatTemplate | None:
    """--chat-template: a file, or a name; None: the model's own, or Llama-2's for llama2.c's files.

    Raises UsageError for an unknown name.
    """
    from pyllm2.tokenizers.chat_formats import named_template
    from pyllm2.tokenizers.chat_template import ChatTemplate, load_chat_template

    own = model.chat_template
    if named is None or (named == "llama2" and model.is_llama2c):
        return own
    tokens = getattr(model.tokenizer, "special_tokens", None) or {}
    found = load_chat_template(named) if os.path.exists(named) else named_template(named, own)
    inherited = {**tokens, **(own.special_tokens if own is not None else {})}
    return ChatTemplate(found.sources, found.path, {**inherited, **found.special_tokens})


class _Turns:
    """Sends messages and prints replies, with what the user should know about the context."""

    def __init__(
        self,
        conversation: Conversation,
        options: argparse.Namespace,
        choose: object,
        seed: int,
    ) -> None:
        self.conversation, self.options, self.seed = conversation, options, seed
        self.choose = choose
        self.left_out = 0
        self.warned = False

    def check(self) -> None:
        """Raise what a first message would raise, for a model without a chat template."""
        conversation = self.conversation
        if conversation.template or conversation.model.chat_template:
            return
        conversation.ids([{"role": "user", "content": "?"}])

    def take(self, text: str, output: Output, interactive: bool) -> None:
        """One turn. On a terminal a message that cannot be sent is told, and the chat goes on."""
        from pyllm2.cli.speed import report_speed

        conversation, options = self.conversation, self.options
        stop = [argument_bytes(text) for text in options.stop] or None
        try:
            tokens = conversation.reply(text, options.max_new_tokens, self.choose, stop)  # type: ignore[arg-type]
        except (ChatTemplateError, ContextError) as error:
            if not interactive:
                raise
            say(f"{error}: the message was not sent")
            return
        generation = conversation.generation
        assert generation is not None
        if conversation.left_out > self.left_out:
            n = conversation.left_out
            say(f"the context is full: the model does not see the first {n} messages any more")
        self.left_out = conversation.left_out
        output.write_raw(MODEL)
        interrupted = False
        try:
            with closing(tokens):
                for token in tokens:
                    output.write(token.bytes)
        except KeyboardInterrupt:
            if not interactive:
                raise
            interrupted = True
        finally:
            output.write(b"\n", end=True)
        report_speed(generation, self.seed)
        if interrupted:
            say("the answer was interrupted: what there is of it belongs to the conversation")
        self._speak_of_the_context(generation.finish_reason)

    def _speak_of_the_context(self, finish_reason: str | None) -> None:
        session = self.conversation.session
        S, room = session.positions, session.room
        generation = self.conversation.generation
        turn = len(generation.prompt) + generation.new_tokens if generation is not None else 0
        much = max(S // 4, turn + min(self.options.max_new_tokens, S // 4))  # a turn like this one
        if finish_reason == "context":
            say(f"the context of {S} tokens is full: the answer ends here")
        elif room < much and not self.warned:
            self.warned = True
            say(
                f"room for {room} more tokens in the context of {S}: after that the oldest "
                "messages are left out (/reset begins anew)"
            )
        if room >= much:
            self.warned = False


def _lines(options: argparse.Namespace, output: Output, interactive: bool) -> Iterator[str]:
    """The user's lines: --prompt if given, then those of stdin."""
    if options.prompt is not None:
        yield os.fsdecode(argument_bytes(options.prompt))
    if sys.stdin is None:
        return
    if interactive:
        yield from _edited_lines(output)
        return
    while True:
        output.write_raw(YOU.encode())
        line = read_line()
        if not line:
            output.write_raw(b"\n")
            return
        yield line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")


def _edited_lines(output: Output) -> Iterator[str]:
    """Lines from a terminal, with editing and the history of this chat where readline is there."""
    with suppress(ImportError):
        import readline  # noqa: F401  input() uses it once it is imported
    reconfigure = getattr(sys.stdin, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="surrogateescape")
    while True:
        try:
            with signals.noticed():
                line = input(YOU)
            yield line
        except EOFError:
            output.write_raw(b"\n")
            return
        except KeyboardInterrupt:
            output.write_raw(b"\n")
            tell("/quit or Ctrl-D ends the chat")
