"""`pyllm2 train llama2`: from texts to a model that `generate` continues prompts with."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import numpy as np
import pytest

from pyllm2 import backends
from pyllm2.formats.safetensors_file import SafetensorsFile
from pyllm2.inference.sample import sample
from pyllm2.llama2 import family
from pyllm2.tokenizers import load_tokenizer
from pyllm2.training.loader import DataLoader
from pyllm2.training.log import read_log
from tests.support import llama2_files
from tests.support.command import TIMEOUT, as_process, in_process, start

MODEL = "dim=8,layers=2,heads=4,kv_heads=2,hidden=12,context=16"
PARAMETERS = 3176
TRAIN = (
    f"train llama2 --init {MODEL} --train data/train.bin --val data/val.bin --out out "
    "--tokenizer t.bin --batch 2 --context 8 --steps 12 --learning-rate 0.02 --warmup 2 "
    "--val-every 6 --val-batches 2 --save-every 5 --backend numpy --threads 1"
).split()
LAST = "step_00000012.safetensors"
pytestmark = pytest.mark.usefixtures("no_plots")
DOCUMENTS = [b"a cab hello\n\n", b"  hello cab cab\n\n", b" \n\n", b"he la co\n\n"]


def prepare(folder: Path) -> bytes:
    """Write a text and a tokenizer, prepare shards; returns stderr of the command."""
    lines = np.random.default_rng(3).integers(0, len(DOCUMENTS), 60)
    (folder / "text.txt").write_bytes(b"".join(DOCUMENTS[i] for i in lines))
    (folder / "t.bin").write_bytes(llama2_files.vocabulary())
    argv = "data prepare text.txt --tokenizer t.bin --out data --val-tokens 60"
    outcome = in_process(argv.split(), folder)
    assert outcome.code == 0
    return outcome.err


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and shards, made once."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A new folder with links to them."""
    for name in ("data", "t.bin"):
        (tmp_path / name).symlink_to(prepared / name)
    return tmp_path


# ---- data -----------------------------------------------------------------------------------


def test_documents_are_prepared_as_llama2_c_does(tmp_path: Path) -> None:
    """Documents are stripped, have a BOS and no EOS; the tokenizer is copied beside the shards."""
    (tmp_path / "x.txt").write_bytes(b"  a cab \n\n \n\n\nhello\n\n")
    (tmp_path / "t.bin").write_bytes(llama2_files.vocabulary())
    argv = ("data", "prepare", "x.txt", "--tokenizer", "t.bin", "--out", "d", "--val-tokens", "0")
    assert in_process(argv, tmp_path).code == 0
    tokenizer = load_tokenizer(tmp_path / "t.bin")
    expected = [*tokenizer.encode("a cab"), *tokenizer.encode("hello")]
    assert expected.count(llama2_files.BOS) == 2
    assert llama2_files.EOS not in expected
    x, y = DataLoader(tmp_path / "d/train.bin", 1, len(expected) - 1).next_batch()
    assert [*x[0].tolist(), int(y[0, -1])] == expected
    assert (tmp_path / "d/tokenizer.bin").read_bytes() == llama2_files.vocabulary()


def test_what_was_prepared_is_said(tmp_path: Path) -> None:
    """stderr names the files, documents and tokens."""
    said = prepare(tmp_path).decode()
    assert re.fullmatch(
        r"pyllm2: data: val.bin, train.bin, tokenizer.bin: \d+ documents, "
        r"\d+ training tokens, 60 validation tokens; documents end at blank lines\n",
        said,
    )


# ---- a run ----------------------------------------------------------------------------------


def test_a_run_from_start_to_end(folder: Path) -> None:
    """Progress on stderr, text on stdout, and a lower loss at the end."""
    outcome = as_process((*TRAIN, "--sample-every", "6", "--sample-tokens", "5"), folder)
    assert outcome.code == 0
    said = outcome.err.decode().splitlines()
    assert re.match(rf"pyllm2: {PARAMETERS:,} parameters; memory: 0 MB for parameters", said[0])
    assert said[1] == "pyllm2: backend numpy, 1 thread"
    assert sum("| loss" in line for line in said) == 12
    assert said[-1] == "pyllm2: model: out/model.bin"
    names = {p.name for p in (folder / "out").iterdir()} - {".lock", "loss.png"}
    assert names == {
        LAST,
        *"main.log model.bin run.json tokenizer.bin step_00000010.safetensors".split(),
    }
    losses = read_log(folder / "out" / "main.log")["tel"]
    assert losses[12] < losses[0]


def test_a_sample_is_what_the_model_says_after_bos(folder: Path) -> None:
    """The last sample is that of the saved model."""
    outcome = in_process((*TRAIN, "--sample-every", "12", "--sample-tokens", "7"), folder)
    assert outcome.code == 0
    config, params = family.load_parameters(folder / "out" / "model.bin")
    decoder = family.decoder(family.build(config, params, backends.engine("numpy")))
    tokenizer = load_tokenizer(folder / "t.bin")
    ids = sample(decoder, llama2_files.BOS, 7, "numpy")
    assert len(ids) == 7
    assert outcome.out == tokenizer.decode(ids) + b"\n"


def test_the_model_is_that_of_the_last_checkpoint(folder: Path) -> None:
    """model.bin has the parameters of the checkpoint and the tokenizer's vocabulary size."""
    assert in_process(TRAIN, folder).code == 0
    config, params = family.load_parameters(folder / "out" / "model.bin")
    assert (config.vocab_size, config.n_layers, config.seq_len) == (llama2_files.V, 2, 16)
    saved = SafetensorsFile(folder / "out" / LAST).read("params", np.float32, (PARAMETERS,))
    np.testing.assert_array_equal(params.flat, saved)


def test_generate_finds_the_tokenizer_beside_the_model(folder: Path) -> None:
    """`generate` needs only the files in the folder of the run."""
    assert in_process(TRAIN, folder).code == 0
    assert (folder / "out" / "tokenizer.bin").read_bytes() == llama2_files.vocabulary()
    argv = "generate out/model.bin --backend numpy --max-new-tokens 4 --temperature 0"
    outcome = in_process([*argv.split(), "--prompt", "a cab"], folder)
    assert outcome.code == 0
    assert outcome.out.startswith(b"a cab")


def test_it_goes_on_from_a_model_file(folder: Path) -> None:
    """The first validation loss with `--init model.bin` is the last one of that model."""
    assert in_process(TRAIN, folder).code == 0
    again = [word if word != MODEL else "out/model.bin" for word in TRAIN]
    assert in_process((*again, "--out", "second"), folder).code == 0
    first, second = (read_log(folder / name / "main.log")["tel"] for name in ("out", "second"))
    assert second[0] == first[12]


def test_the_very_first_update_changes_nothing(folder: Path) -> None:
    """The warm-up of llama2.c, the default schedule, begins with a learning rate of 0."""
    assert (
        in_process((*TRAIN, "--steps", "3", "--save-every", "1", "--keep", "9"), folder).code == 0
    )
    one, two = (
        SafetensorsFile(folder / "out" / f"step_{n:08d}.safetensors").read(
            "params", np.float32, (PARAMETERS,)
        )
        for n in (1, 2)
    )
    new = family.initial_parameters(family.descriptor(MODEL, llama2_files.V), seed=1337)
    np.testing.assert_array_equal(one, new.flat)
    assert (two != one).any()


# ---- dropout, stopping and going on ---------------------------------------------------------


def test_dropout_is_heard_of(folder: Path) -> None:
    """Dropout changes training but not validation, and the seed fixes it."""
    for name, p in (("none", "0"), ("some", "0.3"), ("again", "0.3")):
        assert in_process((*TRAIN, "--dropout", p, "--out", name), folder).code == 0
    none, some, again = (folder / name / "model.bin" for name in ("none", "some", "again"))
    assert some.read_bytes() == again.read_bytes() != none.read_bytes()
    logs = [read_log(folder / name / "main.log") for name in ("none", "some")]
    assert logs[0]["tel"][0] == logs[1]["tel"][0]  # the same untrained model
    assert logs[0]["trl"][0] != logs[1]["trl"][0]


def test_a_run_that_was_stopped_ends_the_same(folder: Path) -> None:
    """A signal, then `--resume`: the same files, byte for byte, with the same dropout masks."""
    long = (*TRAIN, "--steps", "150", "--dropout", "0.3", "--total-batch", "32")
    assert in_process((*long, "--out", "whole"), folder).code == 0
    process = start(long, folder)
    for line in process.stderr:  # type: ignore[union-attr]
        if b"step    7/150 | loss" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert re.search(rb"stopped after \d+ of 150 steps\n", err)
    assert in_process((*long, "--resume"), folder).code == 0
    for name in ("step_00000150.safetensors", "model.bin"):
        assert (folder / "out" / name).read_bytes() == (folder / "whole" / name).read_bytes()


def test_another_dropout_is_another_run(folder: Path) -> None:
    """A run is not resumed with another dropout."""
    assert in_process(TRAIN, folder).code == 0
    outcome = in_process((*TRAIN, "--dropout", "0.5", "--resume"), folder)
    assert outcome.code == 1
    assert b"dropout = 0.5 (saved: 0.0)" in outcome.err


# ---- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--init", "q8.bin"), 1, "q8.bin: is int8: training needs float32"),
        (("--init", "own.bin"), 1, "own.bin: is a model with a classifier of its own"),
        (("--init", "m.bin", "--tokenizer", "small.bin"), 1, "small.bin: has 262 tokens"),
        (("--context", "17"), 2, "--context 17: the model has 16 positions"),
        (("--init", "dim=8,layers=2"), 2, "heads=… is missing"),
        (("--dropout", "1"), 2, "--dropout"),
        (("--dropout", "-0.1"), 2, "--dropout"),
    ],
)
def test_what_is_refused(flags: tuple[str, ...], code: int, message: str, folder: Path) -> None:
    """One line, before anything is written."""
    (folder / "q8.bin").write_bytes(llama2_files.quantized())
    (folder / "own.bin").write_bytes(llama2_files.checkpoint(shared=False))
    (folder / "m.bin").write_bytes(llama2_files.checkpoint())
    (folder / "small.bin").write_bytes(llama2_files.vocabulary(llama2_files.PIECES[:262]))
    outcome = in_process((*TRAIN, *flags), folder)
    assert outcome.code == code
    assert message in outcome.err.decode()
    assert outcome.err.decode().splitlines()[-1].startswith("pyllm2: error: ")
    assert not (folder / "out").exists()
