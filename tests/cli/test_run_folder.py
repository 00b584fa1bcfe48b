"""Run folders: a command that is remembered, a model that can be used, a run that is replaced."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import pyllm2
from pyllm2.errors import FormatError, UsageError
from pyllm2.formats.safetensors_file import SafetensorsFile
from tests.support.command import in_process
from tests.support.toy_training import TRAIN, write_shards

pytestmark = pytest.mark.usefixtures("no_plots")
LAST = "step_00000012.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards and the finished run `out`; read-only."""
    folder = tmp_path_factory.mktemp("run")
    write_shards(folder)
    assert in_process((*TRAIN, "--schedule", "constant"), folder).code == 0
    return folder


@pytest.fixture
def moved(trained: Path, tmp_path: Path) -> Path:
    """The same run under another name in another folder; the shards stay where they are."""
    out = tmp_path / "elsewhere"
    out.mkdir()
    for path in (trained / "out").iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_run_is_resumed_with_the_flags_that_it_began_with(moved: Path) -> None:
    """From any folder, after it has been moved; a flag that is given counts."""
    argv = "train gpt2 --out elsewhere --resume --steps 14".split()
    outcome = in_process(argv, moved)
    assert outcome.code == 0, outcome.err.decode()
    assert b"step   14/14 | loss" in outcome.err
    kept = json.loads((moved / "elsewhere" / "run.json").read_bytes())["arguments"]
    assert kept[kept.index("--steps") + 1] == "14"
    assert kept[kept.index("--schedule") + 1] == "constant"


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ("llama2 --out elsewhere --resume", 2, "elsewhere is a run of gpt2: pyllm2 train gpt2 "),
        ("gpt2 --out new", 2, "the following arguments are required: --init, --train, --val (see"),
        ("text --out new --resume", 1, "new: has no run to resume"),
        ("text --out new", 2, "the following arguments are required: TEXT (see"),
        ("gpt2 --out broken --resume", 1, "broken/run.json: is no record of a run"),
    ],
)
def test_what_cannot_be_resumed_is_refused(moved: Path, argv: str, code: int, message: str) -> None:
    """One line that says what is missing."""
    (moved / "broken").mkdir()
    (moved / "broken" / "run.json").write_text('{"family": "gpt2", "folder": 1, "arguments": []}')
    outcome = in_process(["train", *argv.split()], moved)
    assert outcome.code == code
    assert outcome.err.decode().startswith(f"pyllm2: error: {message}")


def test_force_begins_a_new_run_in_the_folder(moved: Path) -> None:
    """The checkpoints of the old one are deleted; other files stay."""
    write_shards(moved)
    (moved / "elsewhere" / "notes.txt").write_text("mine")
    argv = (*TRAIN, "--out", "elsewhere", "--steps", "3")
    refused = in_process(argv, moved)
    assert b"--resume continues it, --force begins a new one" in refused.err
    assert in_process((*argv, "--force"), moved).code == 0
    names = {path.name for path in (moved / "elsewhere").glob("*[!.]*")}
    assert {n for n in names if n.startswith("step")} == {"step_00000003.safetensors"}
    assert "notes.txt" in names


@pytest.mark.parametrize("path", ["elsewhere", f"elsewhere/{LAST}"])
def test_a_run_folder_and_a_checkpoint_are_models(moved: Path, path: str) -> None:
    """The parameters are those of the checkpoint, or of model.bin in the folder."""
    model = pyllm2.load(moved / path, backend="numpy")
    saved = SafetensorsFile(moved / "elsewhere" / LAST)
    expected = saved.read("params", np.float32, (None,))
    np.testing.assert_array_equal(model.trainable.params.flat, expected)


def test_of_a_stopped_run_the_newest_checkpoint_counts(moved: Path) -> None:
    """model.bin is missing, or older than a checkpoint."""
    (moved / "elsewhere" / "model.bin").unlink()
    assert pyllm2.load(moved / "elsewhere", backend="numpy").path.endswith(LAST)


def test_a_damaged_checkpoint_is_no_model(moved: Path) -> None:
    """The error names the file and the field."""
    path = moved / "elsewhere" / LAST
    whole = path.read_bytes()
    for old, new, message in (
        (rb"\"channels\": 8", rb"\"channels\": 9", "the model's shape: channels = 9"),
        (rb"\"family\": \"gpt2\"", rb"\"family\": \"gpt3\"", "the model's family is missing"),
    ):
        assert whole.count(old) == 1
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(FormatError, match=message):
            pyllm2.load(path, backend="numpy")


def test_the_tokenizer_beside_the_shards_is_taken(moved: Path) -> None:
    """Its size is the vocabulary of a new model, and the model finds it again."""
    rng = np.random.default_rng(0)
    (moved / "text").write_bytes(bytes(rng.integers(97, 123, 400).tolist()))
    argv = "data prepare text --tokenizer bytes --out data --val-tokens 40"
    assert in_process(argv.split(), moved).code == 0
    new = ("--init", "layers=1,heads=2,channels=8,context=8", "--train", "data/train.bin")
    argv = (*TRAIN, *new, "--val", "data/val.bin", "--steps", "2", "--out", "mine")
    outcome = in_process(argv, moved)
    assert outcome.code == 0, outcome.err.decode()
    assert b"to try it: pyllm2 generate mine" in outcome.err
    model = pyllm2.load(moved / "mine", backend="numpy")
    assert model.config.vocab_size == model.tokenizer.vocab_size == 257
    command = "generate mine --backend numpy --max-new-tokens 2 --seed 1"
    assert in_process(command.split(), moved).code == 0


def test_a_vocabulary_is_never_guessed(tmp_path: Path) -> None:
    """Without a tokenizer and vocab=N the size is not known."""
    write_shards(tmp_path)
    init = "layers=1,heads=2,channels=8,context=8"
    outcome = in_process((*TRAIN, "--init", init), tmp_path)
    assert outcome.code == UsageError.exit_code
    assert outcome.err.decode() == (
        f"pyllm2: error: --init {init}: the size of the vocabulary is not known "
        "(there is no tokenizer.bin): add --tokenizer FILE, or vocab=N\n"
    )
