"""What a line of a chat that begins with a slash does."""

from __future__ import annotations

import json
import os

from pyllm2.cli.output import say, tell
from pyllm2.errors import PyLLM2Error
from pyllm2.inference.conversation import Conversation

HELP = """\
/system TEXT   change the system prompt (without TEXT: none); the conversation goes on
/reset         begin anew, with the same system prompt
/save FILE     write the messages as JSON, for `generate --messages FILE`
/quit          end the chat, as the end of input (Ctrl-D) does
//TEXT         send a message that begins with a slash
Ctrl-C ends the answer and not the chat."""


class Commands:
    """The commands of one chat."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self._saved: set[str] = set()  # files of this chat, which it may replace

    def run(self, line: str) -> bool:
        """Do what the line says; False: end the chat. A mistake is told, and the chat goes on."""
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word == "/quit":
            return False
        if word == "/help":
            tell(HELP)
        elif word == "/reset":
            self.conversation.reset()
            say("the conversation begins anew")
        elif word == "/system":
            self.conversation.set_system(rest)
            say("the system prompt has been changed" if rest else "there is no system prompt now")
        elif word == "/save":
            self._save(rest)
        else:
            say(f"unknown command {word}: /help shows all; //{line[1:]} sends it as a message")
        return True

    def _save(self, name: str) -> None:
        from pyllm2.formats.writer import atomic_write

        path = os.path.abspath(os.path.expanduser(name))
        if not name:
            say("/save FILE: the name of the file is missing")
        elif os.path.lexists(path) and path not in self._saved:
            say(f"{name}: already exists: choose another name")
        else:
            try:
                with atomic_write(path) as file:
                    text = json.dumps(self.conversation.messages, indent=2)
                    file.write(text.encode() + b"\n")
            except PyLLM2Error as error:
                say(str(error))
                return
            self._saved.add(path)
            say(f"{len(self.conversation.messages)} messages written to {name}")
