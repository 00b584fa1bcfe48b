"""Chat templates: from the messages of a conversation to the text that a model was tuned on.

A template is a Jinja program that comes with a model. It is rendered as transformers does it, by
jinja2 in its sandbox, in a process of its own with limits of time and memory (`template_process`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from pyllm2.errors import ChatTemplateError, FileError, FormatError, printable, shown
from pyllm2.formats import kinds
from pyllm2.formats.reader import Source, open_source

MAX_TEMPLATE_BYTES = 2**22
MAX_CONFIG_BYTES = 2**26
CONFIG = "tokenizer_config.json"
ALONE = "chat_template.jinja"  # wins over the template in tokenizer_config.json
FURTHER = "additional_chat_templates"  # a folder of NAME.jinja
DEFAULT, TOOL_USE = "default", "tool_use"
_DEPTH = 100  # of nested lists and dicts in a message

# Special tokens of a class whose tokenizer_config.json does not name them.
_CLASS_TOKENS = {
    "llama": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "gpt2": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "qwen2": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
}
_GGUF_TOKENS = {
    "bos": "bos_token",
    "eos": "eos_token",
    "unknown": "unk_token",
    "padding": "pad_token",
}
# Three names of the same thing; templates read one of them.
_REASONING = ("reasoning_content", "thinking", "reasoning")
_MARK = "END_OF_THE_FINAL_MESSAGE"


class ChatTemplate:
    """The chat template of a model: one, or several by name.

    path: for errors   sources: name -> template; a template without a name is "default"
    special_tokens: variables of every template: bos_token, eos_token, ...
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        path: str = "the model",
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        self.sources, self.path = dict(sources), path
        self.special_tokens = dict(special_tokens or {})

    def __repr__(self) -> str:
        return f"<chat template of {printable(self.path)}: {', '.join(self.sources)}>"

    def only(self, name: str) -> ChatTemplate:
        """The template of that name alone. Raises ChatTemplateError if there is none."""
        if name not in self.sources:
            raise self._error(f"no template is named {name!r}, there are {', '.join(self.sources)}")
        return ChatTemplate({DEFAULT: self.sources[name]}, self.path, self.special_tokens)

    def render(
        self,
        messages: Iterable[Mapping[str, Any]],
        tools: Iterable[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        now: datetime | str | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        messages: dicts with `role` and `content`, and what else the template knows: plain JSON
        values. A key whose value is None is dropped, as transformers does.
        tools: JSON descriptions of functions; a template named tool_use is preferred with them.
        add_generation_prompt: end with what begins a message of the assistant.
        continue_final_message: end with the content of the last message, without what follows it.
        now: the time for the template's `strftime_now`, a datetime or a text in ISO format.
        variables: further variables; they win over the special tokens.

        Raises ChatTemplateError: the template refuses the conversation, is wrong, does what the
        sandbox forbids, or needs more than 10 seconds, 1 GiB of memory or 64 Mi characters;
        BackendError without jinja2.
        """
        conversation = self._messages(messages)
        if continue_final_message:
            if add_generation_prompt:
                raise self._error(
                    "continue_final_message and add_generation_prompt exclude each other"
                )
            conversation[-1] = self._marked(conversation[-1])
        plain_tools = None if tools is None else self._plain(list(tools), "tools")
        values = {
            **self.special_tokens,
            "messages": conversation,
            "tools": plain_tools,
            "documents": None,
            "add_generation_prompt": bool(add_generation_prompt),
            **self._plain(variables, "variables"),
        }
        text = self._run(self._source(plain_tools is not None), values, self._now(now))
        return self._cut(text) if continue_final_message else text

    def _source(self, with_tools: bool) -> str:
        """tool_use with tools, else default; the only one, whatever its name."""
        for name in (TOOL_USE, DEFAULT) if with_tools else (DEFAULT,):
            if name in self.sources:
                return self.sources[name]
        names = ", ".join(self.sources) or "none"
        raise self._error(f"no template is named {DEFAULT!r}, there are: {names}")

    def _run(self, source: str, values: dict[str, Any], now: datetime | None) -> str:
        from pyllm2.tokenizers import template_process

        found = template_process.PROCESS.render(source, values, now)
        if "text" in found:
            return str(found["text"])
        limits = {
            "time": f"ran longer than {template_process.SECONDS} seconds",
            "memory": f"needs more than {template_process.MEMORY_BYTES >> 20} MiB of memory",
            "length": f"makes more than {template_process.MAX_CHARACTERS} characters",
            "depth": "is nested too deeply",
            "crash": "ended the process that renders it",
        }
        if found["error"] in limits:
            raise self._error(limits[found["error"]])
        line = f" (line {found['line']} of the template)" if found["line"] else ""
        raise self._error(f"{found['message']}{line}")

    def _messages(self, messages: Any) -> list[dict[str, Any]]:
        """Plain messages without keys that are None, each way of thinking under its three names."""
        if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
            raise self._error(f"messages = {shown(messages)}: expected a list of dicts")
        found = []
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping):
                raise self._error(f"message {i} = {shown(message)}: expected a dict")
            plain = self._plain(message, f"message {i}")
            plain = {key: value for key, value in plain.items() if value is not None}
            thoughts = [plain[key] for key in _REASONING if key in plain]
            for key in _REASONING if thoughts else ():
                plain.setdefault(key, thoughts[0])
            found.append(plain)
        if not found:
            raise self._error("the conversation has no messages")
        return found

    def _marked(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message with a mark at the end of its content, or of the last part that is text."""
        content = message.get("content")
        if isinstance(content, str):
            return {**message, "content": content + _MARK + " "}
        if isinstance(content, list):
            for i in reversed(range(len(content))):
                part = content[i]
                if isinstance(part, dict) and isinstance(part.get("text"), str):
                    part = {**part, "text": part["text"] + _MARK + " "}
                    return {**message, "content": [*content[:i], part, *content[i + 1 :]]}
        raise self._error("continue_final_message: the last message has no text")

    def _cut(self, text: str) -> str:
        """The text up to the mark. A template that strips content has taken the mark's space."""
        at = text.rfind(_MARK)
        if at < 0:
            raise self._error("continue_final_message: the last message is not part of the text")
        head, rest = text[:at], text[at + len(_MARK) :]
        return head if rest.startswith(" ") else head.rstrip()

    def _plain(self, value: Any, what: str, depth: int = 0) -> Any:
        """The value as dicts, lists, strings and numbers. Raises ChatTemplateError for others."""
        if depth > _DEPTH:
            raise self._error(f"{what}: nested deeper than {_DEPTH} levels")
        if value is None or type(value) in (str, int, float, bool):
            return value
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                raise self._error(f"{what}: expected keys that are text")
            return {str(k): self._plain(v, what, depth + 1) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._plain(part, what, depth + 1) for part in value]
        if isinstance(value, str):  # a subclass
            return str(value)
        raise self._error(f"{what}: expected plain JSON values, found {type(value).__name__}")

    def _now(self, now: Any) -> datetime | None:
        if isinstance(now, str):
            try:
                return datetime.fromisoformat(now)
            except ValueError:
                pass
        if now is None or isinstance(now, datetime):
            return now
        raise self._error(f"now = {shown(now)}: expected a datetime")

    def _error(self, message: str) -> ChatTemplateError:
        return ChatTemplateError(self.path, message)


def load_chat_template(path: str | os.PathLike[str], name: str | None = None) -> ChatTemplate:
    """The chat template of a model, with the model's special tokens.

    path: a folder of Hugging Face, a tokenizer_config.json, a GGUF file, or a file that is a
    template. In a folder chat_template.jinja wins over tokenizer_config.json, and
    additional_chat_templates/*.jinja are further ones. Beside a template, tokenizer_config.json
    gives the special tokens.
    name: take the template of that name where there are several.

    Raises FileError or FormatError; ChatTemplateError if there is no template, or none of `name`.
    """
    found = find_chat_template(path)
    if found is None:
        raise ChatTemplateError(path, "there is none")
    return found if name is None else found.only(name)


def find_chat_template(path: str | os.PathLike[str]) -> ChatTemplate | None:
    """`load_chat_template`, or None if there is no template. Raises FileError or FormatError."""
    path = os.fspath(path)
    if os.path.isdir(path):
        found = _of_folder(path)
        return found if found.sources else None
    with open_source(path) as source:
        head = source.head.lstrip()
        if source.head[:4] == b"GGUF":
            return _of_gguf(source)
    if head[:1] == b"{" and head[:2] not in (b"{{", b"{%", b"{#"):
        config = _json(path)
        found = ChatTemplate(_of_config(path, config), path, _special_tokens(config))
        return found if found.sources else None
    beside = os.path.join(os.path.dirname(path), CONFIG)
    tokens = _special_tokens(_json(beside)) if os.path.isfile(beside) else {}
    return ChatTemplate({DEFAULT: _text(path, MAX_TEMPLATE_BYTES)}, path, tokens)


def _of_gguf(source: Source) -> ChatTemplate | None:
    """tokenizer.chat_template, and tokenizer.chat_template.NAME for further ones."""
    from pyllm2.formats.gguf import read_gguf

    metadata, key = read_gguf(source).metadata, "tokenizer.chat_template"
    sources = {DEFAULT: metadata[key]} if isinstance(metadata.get(key), str) else {}
    for name, value in metadata.items():
        if name.startswith(key + ".") and isinstance(value, str):
            sources[name[len(key) + 1 :]] = value
    texts, tokens = metadata.get("tokenizer.ggml.tokens", []), {}
    sentencepiece = metadata.get("tokenizer.ggml.model") == "llama"
    defaults = {"bos": 1, "eos": 2, "unknown": 0} if sentencepiece else {}
    for word, variable in _GGUF_TOKENS.items():
        i = metadata.get(f"tokenizer.ggml.{word}_token_id", defaults.get(word))
        if isinstance(i, int) and 0 <= i < len(texts) and isinstance(texts[i], str):
            tokens[variable] = texts[i]
    return ChatTemplate(sources, source.path, tokens) if sources else None


def _of_folder(folder: str) -> ChatTemplate:
    config_path = os.path.join(folder, CONFIG)
    config = _json(config_path) if os.path.exists(config_path) else {}
    sources = _of_config(config_path, config)
    alone = os.path.join(folder, ALONE)
    if os.path.exists(alone):
        sources = {DEFAULT: _text(alone, MAX_TEMPLATE_BYTES)}
    further = os.path.join(folder, FURTHER)
    if os.path.isdir(further):
        for entry in sorted(os.listdir(further)):
            name, extension = os.path.splitext(entry)
            if extension == ".jinja":
                sources[name] = _text(os.path.join(further, entry), MAX_TEMPLATE_BYTES)
    tokens = _special_tokens(config)
    older = os.path.join(folder, "special_tokens_map.json")
    if os.path.exists(older):
        tokens = {**_named_tokens(_json(older)), **tokens}
    return ChatTemplate(sources, folder, tokens)


def _of_config(path: str, config: Mapping[str, Any]) -> dict[str, str]:
    """name -> template of a tokenizer_config.json; empty if it has none."""
    found = config.get("chat_template")
    if found is None:
        return {}
    if isinstance(found, str):
        return {DEFAULT: found}
    if isinstance(found, dict):
        found = [{"name": name, "template": source} for name, source in found.items()]
    if isinstance(found, list):
        pairs = [(e.get("name"), e.get("template")) for e in found if isinstance(e, dict)]
        if len(pairs) == len(found) and all(isinstance(s, str) for pair in pairs for s in pair):
            return {str(name): str(source) for name, source in pairs}
    raise FormatError(
        path, f"chat_template = {shown(found)}: expected text, or a list of named ones"
    )


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens of a tokenizer_config.json, with those that its class has by default."""
    kind = str(config.get("tokenizer_class") or "").removesuffix("Fast").removesuffix("Tokenizer")
    defaults = _CLASS_TOKENS.get(kind.lower(), {})
    known = {name: text for name, text in defaults.items() if name not in config}
    further = config.get("extra_special_tokens")
    further = _named_tokens(further) if isinstance(further, dict) else {}
    return {**known, **further, **_named_tokens(config)}


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and all other keys of that form: a text, or an object with `content`."""
    found = {}
    for key, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            found[key] = content
    return found


def _json(path: str) -> dict[str, Any]:
    try:
        found = json.loads(_text(path, MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:
        raise FormatError(path, f"is no JSON: {printable(str(error))}") from None
    if not isinstance(found, dict):
        raise FormatError(path, f"is a JSON {type(found).__name__}, expected an object")
    return found


def _text(path: str, most: int) -> str:
    with open_source(path) as source:
        if source.size > most:
            raise FileError(path, f"{source.size} bytes, expected at most {most}")
        kind = kinds.kind_of(source.head)
        if kind not in (None, kinds.PLAIN_TEXT, kinds.JSON_TEXT):
            raise FileError(path, f"looks like {kind}")
        data = source.read_all().tobytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FormatError(path, f"is no UTF-8 text (byte {error.start})") from None
