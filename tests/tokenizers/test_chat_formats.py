"""The chat templates that are known by name."""

from __future__ import annotations

import pytest

from pyllm2.tokenizers.chat_formats import BUILT_IN, named_template
from pyllm2.tokenizers.chat_template import ChatTemplate

pytest.importorskip("jinja2")
MESSAGES = [
    {"role": role, "content": text}
    for role, text in (("system", "S"), ("user", "U"), ("assistant", "A"), ("user", "V"))
]
LLAMA2 = "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST]"


def test_named_formats_render_a_conversation() -> None:
    """Llama-2's exactly; the others end with what begins an answer and have every message."""
    own = ChatTemplate({"mine": "m"}, "x", {"bos_token": "<s>", "eos_token": "</s>"})
    assert named_template("mine", own).render(MESSAGES) == "m"
    texts = {
        n: named_template(n, own).render(MESSAGES, add_generation_prompt=True) for n in BUILT_IN
    }
    assert texts.pop("llama2") == LLAMA2
    for text in texts.values():
        assert text.index("S") < text.index("U") < text.index("A") < text.index("V")
        assert "assistant" in text.lower()[-40:]
