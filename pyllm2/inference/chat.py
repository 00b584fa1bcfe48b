"""From the messages of a conversation to the ids that a model is fed."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pyllm2.errors import ChatTemplateError
from pyllm2.llama2.model import Llama2
from pyllm2.tokenizers.chat import llama2_ids
from pyllm2.tokenizers.chat_template import ChatTemplate


def chat_ids(
    model: Any,
    messages: Iterable[Mapping[str, Any]],
    template: ChatTemplate | None = None,
    replies: Sequence[Sequence[int] | None] = (),
    **options: Any,
) -> list[int]:
    """The ids of a conversation, up to what begins the assistant's next message.

    model: a `LanguageModel`
    template: None is the model's own; for a checkpoint of llama2.c, Llama-2's format.
    replies: for each message its ids if it was generated; only Llama-2's format needs them.
    options: as `ChatTemplate.render` has them: tools, now, variables.

    Raises ChatTemplateError for a model without a template, and what `render` raises.
    """
    template = template or model.chat_template
    if template is not None:
        if not template.special_tokens:
            options = {**getattr(model.tokenizer, "special_tokens", {}), **options}
        text = template.render(messages, **{"add_generation_prompt": True, **options})
        encode = model.tokenizer.encode
        parses = "special" in inspect.signature(encode).parameters  # else it has no special tokens
        ids: list[int] = encode(text, bos=False, **({"special": True} if parses else {}))
        if not ids:
            raise ChatTemplateError(template.path, "makes an empty text of the conversation")
        return ids
    if not (model.is_llama2c and isinstance(model.model, Llama2)):
        raise ChatTemplateError(model.path, "there is none: name one, e.g. chatml or llama2")
    return llama2_ids(model.tokenizer, list(messages), model.path, replies)
