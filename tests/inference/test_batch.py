"""Several prompts at once: each gets the tokens that it gets alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.errors import ContextError
from pyllm2.inference.language_model import LanguageModel
from tests.llama2.test_together import models
from tests.support.command import in_process
from tests.support.llama2_files import lay_out
from tests.support.profiles import few
from tests.support.tested import BACKENDS, engine_of


@pytest.mark.parametrize("backend", BACKENDS)
@few(15)
@given(data=st.data())
def test_each_prompt_gets_the_tokens_that_it_gets_alone(backend: str, data: Any) -> None:
    """Ragged lengths, stop ids, more prompts than are open at once; float32 and int8."""
    model = LanguageModel(data.draw(models(engine_of(backend))), None, backend)
    V, S = model.config.vocab_size, model.config.seq_len
    ids = st.lists(st.integers(0, V - 1), min_size=1, max_size=S)
    prompts = data.draw(st.lists(ids, max_size=20))
    stop = data.draw(st.lists(st.integers(0, V - 1), min_size=1, max_size=2))
    temperature = data.draw(st.sampled_from([0.0, 0.7, 1.5]))
    options = {"max_new_tokens": data.draw(st.integers(0, S)), "temperature": temperature}
    at_once = data.draw(st.sampled_from([1, 3, 16]))
    batch = model.generate_batch(
        prompts, seed=5, stop=stop, logprobs=True, at_once=at_once, **options
    )
    found = [([(t.id, t.logprob) for t in g], g.finish_reason, g.stopped_by) for g in batch]
    for n, (prompt, one) in enumerate(zip(prompts, found, strict=True)):
        alone = model.generate(prompt, seed=5 + n, stop=stop, logprobs=True, **options)
        tokens = [(t.id, t.logprob) for t in alone]
        assert one == (tokens, alone.finish_reason, alone.stopped_by)


def test_no_more_are_open_than_fit_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first always begins; a finished one has given its cache back."""
    from pyllm2.inference import batch, load

    lay_out(tmp_path)
    model = load.load(str(tmp_path / "m.bin"), str(tmp_path / "t.bin"), "numpy")
    monkeypatch.setattr(batch.memory, "limit", lambda: 10**9)
    monkeypatch.setattr(type(model.model), "cache_nbytes", lambda self, positions: 400_000_000)
    running = model.generate_batch(["a"] * 5, 3, stop=[-1])
    for generation in running:
        assert len(running._open) <= 2
        assert generation.session.cache is None
        assert generation.session.room == 0


def test_a_prompt_that_is_too_long_is_named(tmp_path: Path) -> None:
    """When `generate_batch` is called, before anything is fed."""
    from pyllm2.inference.load import load

    lay_out(tmp_path)
    model = load(str(tmp_path / "m.bin"), str(tmp_path / "t.bin"), "numpy")
    with pytest.raises(ContextError, match=r"^prompts\[1\]: prompt is .* context is 4$"):
        model.generate_batch(["a", "a cab a cab"], context=4)
    with pytest.raises(TypeError, match="found one text"):
        model.generate_batch("a cab")
    with pytest.raises(ValueError, match="at_once = 17: expected 1 to 16"):
        model.generate_batch([], at_once=17)
    assert list(model.generate_batch([])) == []


ARGV = ("generate", "m.bin", "--tokenizer", "t.bin", "--backend", "numpy", "--seed", "7")


def test_the_lines_of_a_file_are_prompts(tmp_path: Path) -> None:
    """Each with the text of its own run; the end of the last line begins no prompt."""
    lay_out(tmp_path, {"p.txt": b"a cab\r\n\nbad\n"})
    argv = (*ARGV[:-2], "--max-new-tokens", "4", "--ignore-eos")
    alone = [
        in_process([*argv, "--seed", str(7 + n), "--prompt", p, "--json"], tmp_path).out
        for n, p in enumerate(["a cab", "", "bad"])
    ]
    together = in_process([*argv, "--seed", "7", "--prompts", "p.txt", "--json"], tmp_path)
    assert together.code == 0
    lines = [json.loads(line) for line in together.out.splitlines()]
    assert [line.pop("prompt") for line in lines] == ["a cab", "", "bad"]
    for line, one in zip(lines, map(json.loads, alone), strict=True):
        line.pop("timings"), one.pop("timings")
        assert line == one
    text = in_process([*argv, "--seed", "7", "--prompts", "-"], tmp_path, b"a cab\n\nbad")
    whole = [line["prompt_ids"] and line["text"] for line in lines]
    shown = "\n\n".join(p + t for p, t in zip(["a cab", "", "bad"], whole, strict=True))
    assert text.out.decode("utf-8", "replace") == shown + "\n"
    assert b"3 prompts of" in text.err


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "p.txt: is empty: expected one prompt per line"),
        (b"a\nb\xffc\n", "p.txt: line 2 = 0xff at byte 1 of the line: expected UTF-8"),
        (b"a\n" + b"cab" * 99 + b"\n", "p.txt: line 2: prompt is"),
    ],
)
def test_a_file_that_is_no_list_of_prompts_is_refused(
    data: bytes, error: str, tmp_path: Path
) -> None:
    """One line that names file and line."""
    lay_out(tmp_path, {"p.txt": data})
    outcome = in_process([*ARGV, "--prompts", "p.txt"], tmp_path)
    assert (outcome.code, outcome.out) == (1, b"")
    assert outcome.err.decode().startswith(f"pyllm2: error: {error}")
    both = in_process([*ARGV, "--prompts", "p.txt", "--prompt", "a"], tmp_path)
    assert both.code == 2
