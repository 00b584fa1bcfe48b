"""`pyllm2 data prepare` and `pyllm2 eval hellaswag`."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import pytest

from pyllm2.formats.llmc_evaluation import read_examples
from pyllm2.inference.load import load
from pyllm2.training.evaluation import EvalLoader, evaluate
from pyllm2.training.loader import DataLoader
from tests.hostile.llmc_files import EVAL, EVALUATION, GPT2
from tests.support.command import as_process, in_process
from tests.support.llama2_files import checkpoint


def test_a_text_becomes_shards(tmp_path: Path) -> None:
    """stderr names the files and counts; the loader reads the shards."""
    (tmp_path / "x.txt").write_bytes(b"abc\n\ndef\n\n")
    (tmp_path / "y.txt").write_bytes(b"gh")
    argv = "data prepare x.txt y.txt --tokenizer bytes --out d --val-tokens 4 --shard-tokens 6"
    outcome = in_process(argv.split(), tmp_path)
    assert outcome.out == b""
    assert outcome.err.decode() == (
        "pyllm2: d: val.bin, train_000000.bin, train_000001.bin, tokenizer.bin: "
        "4 documents, 12 training tokens, 4 validation tokens; "
        "documents end at blank lines\n"
    )
    loader = DataLoader(tmp_path / "d/train*.bin", 1, 5, vocab_size=257)
    inputs = [loader.next_batch()[0].ravel().tolist() for _ in range(2)]
    assert inputs == [[10, 10, 256, *b"de"], [10, 10, 256, 256, *b"g"]]


def test_the_bar_needs_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tqdm there is no progress bar, and the files are the same."""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    (tmp_path / "x.txt").write_bytes(b"abc")
    argv = ("data", "prepare", "x.txt", "--tokenizer", "bytes", "--out", "d", "--val-tokens", "0")
    assert in_process(argv, tmp_path).code == 0
    assert (tmp_path / "d/train.bin").stat().st_size == 1024 + 2 * 4


def test_a_rank_file_may_be_named(tmp_path: Path) -> None:
    """A rank file of tiktoken is a tokenizer, also in a process of its own."""
    pytest.importorskip("tiktoken")
    pieces = [*(bytes([byte]) for byte in range(256)), b" c"]
    lines = [base64.b64encode(p) + b" %d\n" % i for i, p in enumerate(pieces)]
    (tmp_path / "ranks").write_bytes(b"".join(lines))
    (tmp_path / "x.txt").write_bytes(b"ab c")
    argv = ("data", "prepare", "x.txt", "--tokenizer", "ranks", "--out", "d", "--val-tokens", "0")
    assert as_process(argv, tmp_path).code == 0
    x, y = DataLoader(tmp_path / "d/train.bin", 1, 3).next_batch()
    assert (x.tolist(), y.tolist()) == ([[257, 97, 98]], [[97, 98, 256]])


def test_the_metric_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    """The line on stdout is the same for every batch size."""
    (tmp_path / "g.bin").write_bytes(GPT2)
    (tmp_path / "e.bin").write_bytes(EVALUATION)
    outcomes = [in_process((*EVAL, "--batch", n), tmp_path) for n in ("1", "2", "5")]
    assert outcomes[0].code == 0
    assert outcomes[0].out.startswith(b"HellaSwag: ")
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_a_llama_is_evaluated_too(tmp_path: Path) -> None:
    """The number of correct choices is that of its own losses."""
    (tmp_path / "e.bin").write_bytes(EVALUATION)
    (tmp_path / "g.bin").write_bytes(checkpoint(vocab_size=32, seq_len=8))
    outcome = in_process(EVAL, tmp_path)
    assert outcome.code == 0
    model = load(tmp_path / "g.bin", backend="numpy")
    loader = EvalLoader(tmp_path / "e.bin", 4, 8)
    right = evaluate(model.trainable, loader)
    assert outcome.out.startswith(b"HellaSwag: %d/%d = " % (right, loader.num_examples))


def test_the_recorded_model_scores_what_is_recorded(shared: Path, tmp_path: Path) -> None:
    """The recorded model gets 3 of 11 examples right by mean loss."""
    folder = shared / "golden/llmc"
    recorded = json.loads((folder / "evalloader/model_eval.json").read_text())
    model, data = folder / "models/tiny/model.bin", folder / "evalloader/eval_small.bin"
    outcome = in_process(
        ["eval", "hellaswag", str(model), "--data", str(data), "--backend", "numpy"], tmp_path
    )
    n, right = recorded["num_examples"], recorded["correct_mean"]
    assert outcome.out.decode() == f"HellaSwag: {right}/{n} = {right / n:f}\n"
    error = (right / n * (1 - right / n) / n) ** 0.5
    said = f"pyllm2: accuracy {right / n:.4f} ± {error:.4f}, chance 0.25\n"
    assert outcome.err.decode() == "pyllm2: batch 10 of 11\n" + said


QUESTION = {"ctx": "A cat", "endings": ["sat.", "ran.", "ate.", "x"], "label": 2, "ind": 24}


def test_hellaswag_becomes_an_evaluation_file(tmp_path: Path) -> None:
    """The context as it is, every ending with a blank in front; the label may be a string."""
    lines = [json.dumps(QUESTION), "", json.dumps({**QUESTION, "label": "3"})]
    (tmp_path / "h.jsonl").write_text("\n".join(lines))
    argv = "data hellaswag h.jsonl --tokenizer bytes --out h.bin".split()
    outcome = in_process(argv, tmp_path)
    assert (outcome.code, outcome.err) == (0, b"pyllm2: h.bin: 2 examples\n")
    first, second = read_examples(tmp_path / "h.bin")
    assert bytes(first.context) == b"A cat"
    assert [bytes(ids) for ids in first.completions] == [b" sat.", b" ran.", b" ate.", b" x"]
    assert (first.label, second.label) == (2, 3)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("", "has no line: expected a line of HellaSwag (github.com/rowanz/hellaswag"),
        ("{", "line 1 is not JSON: expected a line of HellaSwag"),
        ("[1]", "line 1: ctx = None: expected"),
        (json.dumps({**QUESTION, "endings": ["a"]}), "line 1: endings = ['a']: expected"),
        (json.dumps({**QUESTION, "label": 4}), "line 1: label = 4: expected"),
        (json.dumps({**QUESTION, "label": True}), "line 1: label = True: expected"),
        (json.dumps({**QUESTION, "ctx": "x" * 40000}), "line 1: 40017 tokens: too long for the"),
    ],
)
def test_another_file_than_hellaswag_is_refused(line: str, fault: str, tmp_path: Path) -> None:
    """The line says what the file should be and where such come from."""
    (tmp_path / "h.jsonl").write_text(f"{line}\n")
    outcome = in_process("data hellaswag h.jsonl --tokenizer bytes --out h.bin".split(), tmp_path)
    assert outcome.code == 1
    assert outcome.err.decode().startswith(f"pyllm2: error: h.jsonl: {fault}")
    assert not (tmp_path / "h.bin").exists()


def test_one_document_is_not_cut_at_blank_lines(tmp_path: Path) -> None:
    """As with --separator none."""
    (tmp_path / "x.txt").write_bytes(b"abc\n\ndef\n")
    argv = "data prepare x.txt --tokenizer bytes --val-tokens 0 --out"
    for out, flag, count in (("a", "--one-document", 1), ("b", "--separator=none", 1)):
        outcome = in_process([*argv.split(), out, flag], tmp_path)
        assert f"{count} documents".encode() in outcome.err
    assert (tmp_path / "a/train.bin").read_bytes() == (tmp_path / "b/train.bin").read_bytes()
