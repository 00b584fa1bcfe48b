"""`pyllm2 train llama2` as a user meets it: from texts to a model that `generate` plays."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import numpy as np
import pytest

from pyllm2 import backends
from pyllm2.formats.safetensors_file import SafetensorsFile
from pyllm2.llama2 import family
from pyllm2.training.loader import DataLoader
from pyllm2.training.log import read_log
from pyllm2.training.sample import sample

from . import tiny
from .program import as_process, in_process, start

MODEL = "dim=8,layers=2,heads=4,kv_heads=2,hidden=12,context=16"
PARAMETERS = 3176
TRAIN = (
    "train", "llama2", "--init", MODEL, "--train", "data/train.bin", "--val", "data/val.bin",
    "--out", "out", "--tokenizer", "t.bin", "--batch", "2", "--context", "8", "--steps", "12",
    "--learning-rate", "0.02", "--warmup", "2", "--val-every", "6", "--val-batches", "2",
    "--save-every", "5", "--backend", "numpy", "--threads", "1",
)  # fmt: skip
LAST = "step_00000012.safetensors"
DOCUMENTS = [b"a cab hello\n\n", b"  hello cab cab\n\n", b" \n\n", b"he la co\n\n"]


def prepare(folder: Path) -> bytes:
    """Shards from a text, by the command; what it said."""
    lines = np.random.default_rng(3).integers(0, len(DOCUMENTS), 60)
    (folder / "text.txt").write_bytes(b"".join(DOCUMENTS[i] for i in lines))
    (folder / "t.bin").write_bytes(tiny.vocabulary())
    argv = ("data", "prepare", "text.txt", "--tokenizer", "t.bin", "--out", "data",
            "--val-tokens", "60")  # fmt: skip
    outcome = in_process(argv, folder)
    assert outcome.code == 0
    return outcome.err


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary and shards, made once."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A folder that has them."""
    for name in ("data", "t.bin"):
        (tmp_path / name).symlink_to(prepared / name)
    return tmp_path


# ---- data -----------------------------------------------------------------------------------


def test_documents_are_prepared_as_llama2_c_does(tmp_path: Path) -> None:
    """Each stripped, with a BOS in front and no EOS; the vocabulary lies beside the shards."""
    (tmp_path / "x.txt").write_bytes(b"  a cab \n\n \n\n\nhello\n\n")
    (tmp_path / "t.bin").write_bytes(tiny.vocabulary())
    argv = ("data", "prepare", "x.txt", "--tokenizer", "t.bin", "--out", "d", "--val-tokens", "0")
    assert in_process(argv, tmp_path).code == 0
    tokenizer = family.load_tokenizer(tmp_path / "t.bin")
    expected = [*tokenizer.encode("a cab"), *tokenizer.encode("hello")]
    assert expected.count(tiny.BOS) == 2
    assert tiny.EOS not in expected
    x, y = DataLoader(tmp_path / "d/train.bin", 1, len(expected) - 1).next_batch()
    assert [*x[0].tolist(), int(y[0, -1])] == expected
    assert (tmp_path / "d/tokenizer.bin").read_bytes() == tiny.vocabulary()


def test_what_was_prepared_is_said(tmp_path: Path) -> None:
    """Files, documents, tokens."""
    said = prepare(tmp_path).decode()
    assert re.fullmatch(
        r"pyllm2: data: val.bin, train.bin, tokenizer.bin: \d+ documents, "
        r"\d+ tokens to train on, 60 to validate\n",
        said,
    )


# ---- a run ----------------------------------------------------------------------------------


def test_a_run_from_start_to_end(folder: Path) -> None:
    """Progress on stderr, text on stdout, and what is learned lowers the loss."""
    outcome = as_process((*TRAIN, "--sample-every", "6", "--sample-tokens", "5"), folder)
    assert outcome.code == 0
    said = outcome.err.decode().splitlines()
    assert re.match(rf"pyllm2: {PARAMETERS:,} parameters; memory: 0 MB for parameters", said[0])
    assert said[1] == "pyllm2: backend numpy, 1 threads"
    assert sum("| loss" in line for line in said) == 12
    assert said[-1] == "pyllm2: model: out/model.bin"
    names = {p.name for p in (folder / "out").iterdir()} - {".lock", "loss.png"}
    assert names == {
        "main.log", "model.bin", "tokenizer.bin", "step_00000010.safetensors", LAST,
    }  # fmt: skip
    losses = read_log(folder / "out" / "main.log")["tel"]
    assert losses[12] < losses[0]


def test_a_sample_is_what_the_model_says_after_bos(folder: Path) -> None:
    """The text of the last sample, from the model that was saved."""
    outcome = in_process((*TRAIN, "--sample-every", "12", "--sample-tokens", "7"), folder)
    assert outcome.code == 0
    config, params = family.load_parameters(folder / "out" / "model.bin")
    decoder = family.decoder(family.build(config, params, backends.ops("numpy")))
    tokenizer = family.load_tokenizer(folder / "t.bin")
    ids = sample(decoder, tiny.BOS, 7, "numpy")
    assert len(ids) == 7
    assert outcome.out == tokenizer.decode(ids) + b"\n"


def test_the_model_is_that_of_the_last_checkpoint(folder: Path) -> None:
    """In llama2.c's format, with the vocabulary of the tokenizer."""
    assert in_process(TRAIN, folder).code == 0
    config, params = family.load_parameters(folder / "out" / "model.bin")
    assert (config.vocab_size, config.n_layers, config.seq_len) == (tiny.V, 2, 16)
    saved = SafetensorsFile(folder / "out" / LAST).read("params", np.float32, (PARAMETERS,))
    np.testing.assert_array_equal(params.flat, saved)


def test_the_model_is_played_with_the_tokenizer_beside_it(folder: Path) -> None:
    """`generate` needs nothing but the folder of the run."""
    assert in_process(TRAIN, folder).code == 0
    assert (folder / "out" / "tokenizer.bin").read_bytes() == tiny.vocabulary()
    outcome = in_process(
        ("generate", "out/model.bin", "--tokenizer", "out/tokenizer.bin", "--backend", "numpy",
         "--prompt", "a cab", "--max-new-tokens", "4", "--temperature", "0"),
        folder,
    )  # fmt: skip
    assert outcome.code == 0
    assert outcome.out.startswith(b"a cab")


def test_it_goes_on_from_a_model_file(folder: Path) -> None:
    """`--init model.bin` begins where that model ended: its validation loss is the first."""
    assert in_process(TRAIN, folder).code == 0
    again = [word if word != MODEL else "out/model.bin" for word in TRAIN]
    assert in_process((*again, "--out", "second"), folder).code == 0
    first, second = (read_log(folder / name / "main.log")["tel"] for name in ("out", "second"))
    assert second[0] == first[12]


def test_the_very_first_update_changes_nothing(folder: Path) -> None:
    """llama2.c's warm-up, which is the default, begins at a rate of 0."""
    assert (
        in_process((*TRAIN, "--steps", "3", "--save-every", "1", "--keep", "9"), folder).code == 0
    )
    one, two = (
        SafetensorsFile(folder / "out" / f"step_{n:08d}.safetensors").read(
            "params", np.float32, (PARAMETERS,)
        )
        for n in (1, 2)
    )
    new = family.initial_parameters(family.descriptor(MODEL, tiny.V), seed=1337)
    np.testing.assert_array_equal(one, new.flat)
    assert (two != one).any()


# ---- dropout, stopping and going on ---------------------------------------------------------


def test_dropout_is_heard_of(folder: Path) -> None:
    """Another run than without, the same again, and none of it in a validation."""
    for name, p in (("none", "0"), ("some", "0.3"), ("again", "0.3")):
        assert in_process((*TRAIN, "--dropout", p, "--out", name), folder).code == 0
    none, some, again = (folder / name / "model.bin" for name in ("none", "some", "again"))
    assert some.read_bytes() == again.read_bytes() != none.read_bytes()
    logs = [read_log(folder / name / "main.log") for name in ("none", "some")]
    assert logs[0]["tel"][0] == logs[1]["tel"][0]  # the same untrained model
    assert logs[0]["trl"][0] != logs[1]["trl"][0]


@pytest.mark.parametrize("dropout", ["0", "0.3"])
def test_a_run_that_was_stopped_ends_the_same(dropout: str, folder: Path) -> None:
    """A signal, then `--resume`: byte for byte, the masks of dropout included."""
    long = (*TRAIN, "--steps", "150", "--dropout", dropout, "--total-batch", "32")
    assert in_process((*long, "--out", "whole"), folder).code == 0
    process = start(long, folder)
    for line in process.stderr:  # type: ignore[union-attr]
        if b"step    7/150 | loss" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(rb"stopped after \d+ of 150 steps; --resume goes on", err)
    assert in_process((*long, "--resume"), folder).code == 0
    for name in ("step_00000150.safetensors", "model.bin"):
        assert (folder / "out" / name).read_bytes() == (folder / "whole" / name).read_bytes()


def test_another_dropout_is_another_run(folder: Path) -> None:
    """It is not resumed."""
    assert in_process(TRAIN, folder).code == 0
    outcome = in_process((*TRAIN, "--dropout", "0.5", "--resume"), folder)
    assert outcome.code == 1
    assert b"dropout = 0.5 (saved: 0.0)" in outcome.err


# ---- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--init", "q8.bin"), 1, "q8.bin: is int8: training goes on from float32"),
        (("--init", "own.bin"), 1, "own.bin: is a model with a classifier of its own"),
        (("--init", "m.bin", "--tokenizer", "small.bin"), 1, "small.bin: has 262 tokens"),
        (("--context", "17"), 2, "--context 17: the model has 16 positions"),
        (("--init", "dim=8,layers=2"), 2, "heads=… is missing"),
        (("--dropout", "1"), 2, "--dropout"),
        (("--dropout", "-0.1"), 2, "--dropout"),
    ],
)  # fmt: skip
def test_what_is_refused(flags: tuple[str, ...], code: int, message: str, folder: Path) -> None:
    """In one line, before anything is written."""
    (folder / "q8.bin").write_bytes(tiny.quantized())
    (folder / "own.bin").write_bytes(tiny.checkpoint(shared=False))
    (folder / "m.bin").write_bytes(tiny.checkpoint())
    (folder / "small.bin").write_bytes(tiny.vocabulary(tiny.PIECES[:262]))
    outcome = in_process((*TRAIN, *flags), folder)
    assert outcome.code == code
    assert message in outcome.err.decode()
    assert outcome.err.decode().splitlines()[-1].startswith("pyllm2: error: ")
    assert not (folder / "out").exists()
