"""Chat templates: the recorded ones, folders, the sandbox and its limits."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from pyllm2.errors import BackendError, ChatTemplateError, PyLLM2Error
from pyllm2.formats.gguf_writer import write_gguf
from pyllm2.tokenizers import load_tokenizer, template_process
from pyllm2.tokenizers.chat_template import ChatTemplate, load_chat_template
from tests.support.golden import shared_folder

pytest.importorskip("jinja2")
SHARED = shared_folder()
CHAT = SHARED / "golden" / "real" / "chat" if SHARED else Path("absent")
golden = pytest.mark.skipif(not CHAT.is_dir(), reason="no golden files of chat templates")
HI = [{"role": "user", "content": "hi"}]


def template(source: str, **tokens: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, "x", tokens)


def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CHAT / "cases.json").read_text("utf-8"))
    return found


def outcome(made: ChatTemplate, messages: Any, **options: Any) -> str:
    """The text, or the message of the error in brackets."""
    try:
        return made.render(messages, **options)
    except ChatTemplateError as error:
        return f"[{error.message}]"


@golden
def test_templates_give_the_recorded_texts_and_errors() -> None:
    """Every template with every conversation, to the last character."""
    found = recorded()
    for case in found["cases"]:
        made = load_chat_template(CHAT / f"{case['template']}.jinja")
        text = outcome(
            made,
            found["conversations"][case["conversation"]][: case.get("take")],
            tools=found["tools"] if case["tools"] else None,
            add_generation_prompt=case["add_generation_prompt"],
            continue_final_message=case.get("continue_final_message", False),
            now=found["now"],
            **{**found["special_tokens"], **case.get("variables", {})},
        )
        expected = case["text"] if "text" in case else f"[{case['error']['message']}]"
        assert text == expected, case


@golden
def test_snippets_give_the_recorded_texts_and_refusals() -> None:
    """White space, scoping, filters, the sandbox."""
    found = recorded()
    for case in found["snippets"]:
        made = template(case["template"], **found["special_tokens"])
        text = outcome(made, found["snippet_conversation"], now=found["now"])
        if "text" in case:
            assert text == case["text"], case
        else:
            assert case["error"]["message"] in text, case


@golden
def test_folders_give_the_recorded_texts() -> None:
    """In tokenizer_config.json, beside it (that one wins), in a list; and the recorded ids."""
    folders = [file.parent for file in CHAT.parent.glob("hf/*/chat.json")]
    assert folders
    for folder in folders:
        made = load_chat_template(folder)
        for case in json.loads((folder / "chat.json").read_text("utf-8")):
            text = made.render(
                case["messages"], add_generation_prompt=True, now="2024-07-26 09:05:03"
            )
            assert text == case["text"]
            assert load_tokenizer(folder).encode(text, bos=False, special=True) == case["ids"]


@golden
def test_gguf_has_a_template() -> None:
    """llama-q4_0.gguf has one, with the special tokens of its vocabulary; llama-q8_0 has none."""
    made = load_chat_template(CHAT.parent / "gguf" / "llama-q4_0.gguf")
    assert "Hello" in made.render([{"role": "user", "content": "Hello"}])
    assert set(made.special_tokens) >= {"bos_token", "eos_token"}
    with pytest.raises(ChatTemplateError, match="there is none"):
        load_chat_template(CHAT.parent / "gguf" / "llama-q8_0.gguf")


def test_a_gguf_has_templates_by_name(tmp_path: Path) -> None:
    """The plain key is the default; "llama" has ids of special tokens that no entry says."""
    key, tokens = "tokenizer.chat_template", [*"abcdefg"]
    metadata: dict[str, Any] = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens}
    metadata |= {"tokenizer.ggml.padding_token_id": 5, f"{key}.tool_use": "tools"}
    named = "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}"
    path = tmp_path / "m.gguf"
    write_gguf(path, {**metadata, key: named}, [])
    made = load_chat_template(path)
    assert made.sources == {"default": named, "tool_use": "tools"}
    assert made.render(HI) == "bcaf"
    said = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.eos_token_id": 3}
    write_gguf(path, {**metadata, **said, key: named}, [])
    assert load_chat_template(path).render(HI) == "df"


def folder_with(tmp_path: Path, **files: Any) -> Path:
    """A folder with files by their names without an extension."""
    names = {"config": "tokenizer_config.json", "alone": "chat_template.jinja"}
    names |= {"map": "special_tokens_map.json", "more": "additional_chat_templates/more.jinja"}
    for name, content in files.items():
        path = tmp_path / names[name]
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return tmp_path


def test_the_file_of_its_own_wins(tmp_path: Path) -> None:
    """chat_template.jinja before tokenizer_config.json, whose tokens it gets."""
    config = {"chat_template": "wrong", "eos_token": {"content": "<e>"}, "add_bos_token": True}
    folder = folder_with(
        tmp_path, config=config, alone="{{ bos_token }}{{ eos_token }}{{ add_bos_token }}|"
    )
    assert load_chat_template(folder).render(HI) == "<e>|"
    assert load_chat_template(folder / "chat_template.jinja").render(HI) == "<e>|"
    assert load_chat_template(folder / "tokenizer_config.json").render(HI) == "wrong"


def test_the_tool_template_is_taken_with_tools(tmp_path: Path) -> None:
    """A list of named templates: tool_use with tools, else default; a name asks for one."""
    named = [{"name": name, "template": name} for name in ("default", "tool_use", "rag")]
    made = load_chat_template(folder_with(tmp_path, config={"chat_template": named}, more="more"))
    assert made.render(HI) == "default"
    assert made.render(HI, tools=[{"name": "f"}]) == "tool_use"
    assert made.only("rag").render(HI, tools=[]) == "rag"
    assert load_chat_template(tmp_path, "more").render(HI) == "more"
    with pytest.raises(ChatTemplateError, match="no template is named 'x', there are default, t"):
        load_chat_template(tmp_path, "x")


def test_a_class_knows_its_special_tokens(tmp_path: Path) -> None:
    """LlamaTokenizer has <s>, unless the file says null."""
    show = "{{ bos_token }} {{ eos_token }}"
    config = {"tokenizer_class": "LlamaTokenizerFast", "eos_token": None, "chat_template": show}
    assert load_chat_template(folder_with(tmp_path, config=config)).render(HI) == "<s> "
    folder_with(tmp_path, map={"bos_token": "<b>", "eos_token": {"content": "<e>"}})
    assert load_chat_template(tmp_path).render(HI) == "<s> <e>"


BAD_FILES: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"config": {}}, "chat template: there is none"),
    "json": ({"config": "{"}, "tokenizer_config.json: is no JSON: "),
    "list": ({"config": "[]"}, "tokenizer_config.json: is a JSON list, expected an object"),
    "deep": ({"config": "[" * 100_000}, "tokenizer_config.json: is no JSON: "),
    "kind": ({"config": {"chat_template": 1}}, "chat_template = 1: expected text, or a list"),
    "names": ({"config": {"chat_template": [{"name": 1}]}}, "expected text, or a list of named"),
    "long": ({"alone": "x" * (2**22 + 1)}, "chat_template.jinja: 4194305 bytes, expected at most"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused(name: str, tmp_path: Path) -> None:
    """Row 88: one line that names the file."""
    files, words = BAD_FILES[name]
    with pytest.raises(PyLLM2Error) as caught:
        load_chat_template(folder_with(tmp_path, **files))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_CALLS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "empty": ([], {}, "the conversation has no messages"),
    "text": ("hi", {}, "messages = 'hi': expected a list of dicts"),
    "number": (7, {}, "messages = 7: expected a list of dicts"),
    "message": (["hi"], {}, "message 0 = 'hi': expected a dict"),
    "object": ([{"role": object}], {}, "message 0: expected plain JSON values, found type"),
    "key": ([{1: "a"}], {}, "message 0: expected keys that are text"),
    "both": (
        HI,
        {"add_generation_prompt": True, "continue_final_message": True},
        "continue_final_message and add_generation_prompt exclude each other",
    ),
    "no-text": ([{"role": "user"}], {"continue_final_message": True}, "last message has no text"),
    "not-there": (HI, {"continue_final_message": True}, "is not part of the text"),
    "now": (HI, {"now": "noon"}, "now = 'noon': expected a datetime"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_bad_call_is_refused(name: str) -> None:
    """Before anything is rendered, except for a text without the last message."""
    messages, options, words = BAD_CALLS[name]
    with pytest.raises(ChatTemplateError) as caught:
        template("x").render(messages, **options)
    assert words in str(caught.value)


def test_a_message_that_holds_itself_is_refused() -> None:
    """And one that is nested 1,000 levels deep."""
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ChatTemplateError, match="message 0: nested deeper than 100 levels"):
        template("x").render([{"role": "user", "content": endless}])


def test_none_is_dropped_and_thinking_has_three_names() -> None:
    """As transformers does before it renders."""
    made = template("{{ messages[0].content is defined }} {{ messages[0].thinking }}")
    assert made.render([{"role": "a", "content": None, "reasoning": "hm"}]) == "False hm"


def test_a_final_message_is_continued_after_its_content() -> None:
    """Also if its words occur before, are empty, or are the last part of a list."""
    made = template("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    final = {"role": "assistant", "content": "hi"}
    options = {"continue_final_message": True}
    assert made.render([*HI, final], **options) == "<hi><hi"
    assert made.render([*HI, {**final, "content": ""}], **options) == "<hi><"
    assert made.render([*HI, {**final, "content": " a  "}], **options) == "<hi>< a  "
    trims = template("{% for m in messages %}<{{ m.content | trim }}>{% endfor %}")
    assert trims.render([*HI, {**final, "content": " a  "}], **options) == "<hi><a"
    parts = template("{% for m in messages %}{{ m.content[0].text }}>{% endfor %}")
    content = [{"type": "text", "text": "one"}, {"type": "image"}]
    assert parts.render([{"role": "user", "content": content}], **options) == "one"


def test_bytes_that_are_no_utf8_survive() -> None:
    """A lone surrogate stands for a byte."""
    assert template("{{ messages[0].content }}").render([{"content": "a\udcff"}]) == "a\udcff"


def test_an_error_of_a_template_is_one_line() -> None:
    """`raise_exception` word for word in `message`, printable in the text of the error."""
    with pytest.raises(ChatTemplateError) as caught:
        template("{{ raise_exception('no\nway \x1b[2J') }}").render(HI)
    assert caught.value.message == "no\nway \x1b[2J"
    assert str(caught.value) == "x: chat template: no way \\x1b[2J"


GROW = (
    "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}"
)
TIME, MEMORY = "ran longer than 1 seconds", "needs more than 256 MiB of memory"
DEPTH, LENGTH = "is nested too deeply", "makes more than 10000 characters"
TWICE = "{% for i in range(100000) %}{% for j in range(100000) %}"
BOMBS = {
    "loop": (TWICE + "{% endfor %}{% endfor %}", TIME),
    "power": ("{% set n = 7 ** 70000000 %}", TIME),
    "lipsum": ("{{ lipsum(n=10**8) }}", TIME),
    "output": (TWICE + "xxxx{% endfor %}{% endfor %}", LENGTH),
    "product": ("{{ 'a' * 10**10 }}", MEMORY),
    "joined": (GROW % ("'a' * 99", "ns.x ~ ns.x"), MEMORY),
    "added": (GROW % ("[1, 2, 3]", "ns.x + ns.x"), MEMORY),
    "filter": ("{{ 'a' | center(10**10) }}", MEMORY),
    "format": ("{{ '%9999999999d' | format(1) }}", MEMORY),
    "method": ("{{ '{:>9999999999}'.format(1) }}", MEMORY),
    "bytes": ("{{ (5).to_bytes(10**11, 'little') }}", MEMORY),
    "indent": ("{{ [[1]] | tojson(indent=10**10) }}", MEMORY),
    "macro": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", DEPTH),
    "loops": ("{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", DEPTH),
    "brackets": ("{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}", DEPTH),
    "blocks": ("{% if true %}" * 3000 + "{% endif %}" * 3000, DEPTH),
    "range": ("{{ range(10**9) | list }}", "Range too big"),
    "globals": ("{{ cycler.__init__.__globals__.os.system('id') }}", "is unsafe"),
    "format-string": ("{{ '{0.__class__.__mro__}'.format(1) }}", "is unsafe"),
    "file": ("{% include '/etc/passwd' %}", "no loader"),
}


def test_bombs_end_at_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows 86 and 87: time, memory, characters, depth; afterwards templates render as before."""
    monkeypatch.setattr(template_process, "SECONDS", 1)
    monkeypatch.setattr(template_process, "MEMORY_BYTES", 2**28)
    monkeypatch.setattr(template_process, "MAX_CHARACTERS", 10_000)
    monkeypatch.setattr(template_process, "PROCESS", template_process.TemplateProcess())
    for name, (source, words) in BOMBS.items():
        text = outcome(template(source), HI)
        # A busy machine may be late where memory should have been the end.
        assert words in text or (words == MEMORY and TIME in text), (name, text)
        assert template("{{ messages | length }}").render(HI) == "1"


def test_threads_and_forked_children_render() -> None:
    """Threads take turns; a child starts a process of its own."""
    made = template("{{ messages[0].content }}")
    texts: dict[str, str] = {}

    def render(text: str) -> None:
        texts[text] = made.render([{"role": "user", "content": text}])

    threads = [threading.Thread(target=render, args=(str(i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {str(i): str(i) for i in range(8)}
    child = os.fork()
    if child == 0:
        os._exit(0 if made.render([{"role": "user", "content": "c"}]) == "c" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert made.render([{"role": "user", "content": "p"}]) == "p"


def test_without_jinja2_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker finds nothing on an empty path."""
    monkeypatch.setattr(template_process, "PROCESS", template_process.TemplateProcess())
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if "-packages" not in p])
    with pytest.raises(BackendError, match="chat templates need jinja2: pip install"):
        template("x").render(HI)
