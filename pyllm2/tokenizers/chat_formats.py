"""Chat templates by name, for models that come without one: `--chat-template chatml`."""

from __future__ import annotations

from pyllm2.errors import UsageError
from pyllm2.tokenizers.chat_template import DEFAULT, ChatTemplate

_CHATML = """\
{% for m in messages -%}
<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor -%}
{% if add_generation_prompt -%}
<|im_start|>assistant
{% endif %}"""

_LLAMA2 = """\
{% set ns = namespace(system='') -%}
{% for m in messages -%}
{% if m.role == 'system' and loop.first -%}
{% set ns.system = '<<SYS>>\\n' ~ m.content ~ '\\n<</SYS>>\\n\\n' -%}
{% elif m.role == 'user' -%}
{{ bos_token }}[INST] {{ ns.system ~ m.content }} [/INST]
{%- set ns.system = '' -%}
{% elif m.role == 'assistant' -%}
{{ ' ' ~ (m.content | trim) ~ ' ' ~ eos_token }}
{%- else -%}
{{ raise_exception('the roles are system (first), user and assistant') }}
{%- endif -%}
{% endfor %}"""

_LLAMA3 = """\
{{ bos_token }}
{%- for m in messages -%}
<|start_header_id|>{{ m.role }}<|end_header_id|>

{{ m.content | trim }}<|eot_id|>
{%- endfor -%}
{% if add_generation_prompt -%}
<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""

_ZEPHYR = """\
{% for m in messages -%}
<|{{ m.role }}|>
{{ m.content }}{{ eos_token }}
{% endfor -%}
{% if add_generation_prompt -%}
<|assistant|>
{% endif %}"""

_PLAIN = """\
{% for m in messages -%}
{{ m.role | capitalize }}: {{ m.content | trim }}
{% endfor -%}
{% if add_generation_prompt -%}
Assistant:
{%- endif %}"""

BUILT_IN = {
    "llama2": _LLAMA2,
    "llama3": _LLAMA3,
    "chatml": _CHATML,
    "zephyr": _ZEPHYR,
    "plain": _PLAIN,
}


def named_template(name: str, own: ChatTemplate | None) -> ChatTemplate:
    """The model's own template of that name, else the one of `BUILT_IN`.

    Raises UsageError for an unknown name.
    """
    if own is not None and name in own.sources:
        return own.only(name)
    if name in BUILT_IN:
        tokens = own.special_tokens if own is not None else {}
        return ChatTemplate({DEFAULT: BUILT_IN[name]}, name, tokens)
    names = [*(own.sources if own is not None else ()), *BUILT_IN]
    known = ", ".join(dict.fromkeys(names))
    raise UsageError(f"--chat-template {name}: no such file or name; names are {known}")
