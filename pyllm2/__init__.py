"""pyllm2: one specification of a language model, in NumPy, and the rivals that agree with it.

    import pyllm2
    model = pyllm2.load()                             the story model that comes with it
    model = pyllm2.load("stories260K.bin", tokenizer="tok512.bin")     or a file, or a folder
    print(model.complete("Once upon a time", max_new_tokens=50, temperature=0))
    for token in model.generate("Once upon a time"):  as they are made
        print(token.text, end="")
    model.logits(ids)                                 (T, V), after each id
    model.loss(x, y), model.loss_and_grads(x, y)      x, y: (B, T) ids
    model.start()                                     a session: feed ids, rewind

    pyllm2.testing                                    check_op: a kernel of yours, by properties

The letters, used everywhere, in code, docstrings and errors:

    B  batch              C    channels (dim)                 L    layers
    T  tokens in a call   F    feed-forward width (hidden_dim)  V    vocabulary
    S  context length     NH   query heads                    hs   head size, C / NH
    P  positions so far   NKV  key/value heads                OC   output channels

Importing this starts nothing heavy: NumPy is loaded by the first `load`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm2.errors import PyLLM2Error, PyLLM2Warning

if TYPE_CHECKING:
    from pyllm2.inference.language_model import LanguageModel
    from pyllm2.inference.load import load
    from pyllm2.inference.token import Token
    from pyllm2.observe.trace import trace
    from pyllm2.tokenizers.chat_template import load_chat_template

__version__ = "0.1.0"
__all__ = [
    "LanguageModel",
    "PyLLM2Error",
    "PyLLM2Warning",
    "Token",
    "__version__",
    "load",
    "load_chat_template",
    "trace",
]

_LAZY = {
    "load": "pyllm2.inference.load",
    "LanguageModel": "pyllm2.inference.language_model",
    "Token": "pyllm2.inference.token",
    "load_chat_template": "pyllm2.tokenizers.chat_template",
    "trace": "pyllm2.observe.trace",
}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'pyllm2' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
