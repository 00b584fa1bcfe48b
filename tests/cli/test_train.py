"""`pyllm2 train gpt2`: its output and files, signals, resuming."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllm2.backends import Engine
from pyllm2.cli import train_flags
from pyllm2.formats.safetensors_file import SafetensorsFile
from pyllm2.gpt2 import ops
from pyllm2.gpt2.checkpoint import load_parameters
from pyllm2.gpt2.model import GPT2
from pyllm2.inference.sample import sample
from pyllm2.tokenizers import load_tokenizer
from pyllm2.training import recipe, schedule
from pyllm2.training.folder import checkpoints
from pyllm2.training.log import read_log
from tests.support.command import TIMEOUT, as_process, in_process, start
from tests.support.toy_training import CONFIG, N_PARAMETERS, TRAIN, write_shards

LAST = "step_00000012.safetensors"
pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with shards."""
    write_shards(tmp_path)
    return tmp_path


def lines_of(err: bytes) -> list[str]:
    return err.decode().splitlines()


def test_a_run_from_start_to_end(folder: Path) -> None:
    """Progress on stderr, samples on stdout; log, checkpoints and model in the folder."""
    outcome = as_process((*TRAIN, "--sample-every", "6", "--sample-tokens", "5"), folder)
    assert outcome.code == 0
    samples = outcome.out.decode().splitlines()
    assert len(samples) == 2  # after 6 and 12 steps
    for text in samples:
        ids = [int(word) for word in text.split()]
        assert len(ids) == 5
        assert all(0 <= i < CONFIG.vocab_size for i in ids)

    said = lines_of(outcome.err)
    assert re.match(rf"pyllm2: {N_PARAMETERS:,} parameters; memory: 0 MB for parameters", said[0])
    assert said[1] == "pyllm2: backend numpy, 1 thread"
    steps = [
        re.match(r"pyllm2: step +(\d+)/12 \| loss [\d.]+ \| norm [\d.]+ \| lr", s) for s in said
    ]
    assert [int(m[1]) for m in steps if m] == list(range(1, 13))
    validated = [re.match(r"pyllm2: step +(\d+)/12 \| validation loss \d\.\d{6}$", s) for s in said]
    assert [int(m[1]) for m in validated if m] == [0, 6, 12]
    assert re.match(r"pyllm2: 12 steps in .* tokens/s .*, peak memory [\d,]+ MB$", said[-3])
    assert said[-1] == "pyllm2: model: out/model.bin"

    names = {p.name for p in (folder / "out").iterdir()} - {".lock", "loss.png"}
    assert names == {"main.log", "model.bin", "run.json", "step_00000010.safetensors", LAST}
    log = read_log(folder / "out" / "main.log")
    assert list(log["trl"]) == list(range(12))
    assert list(log["tel"]) == [0, 6, 12]


def test_the_model_is_that_of_the_last_checkpoint(folder: Path) -> None:
    """model.bin has the parameters of the checkpoint; padding rows are 0, and the loss is lower."""
    assert in_process(TRAIN, folder).code == 0
    config, params = load_parameters(folder / "out" / "model.bin")
    assert (config.vocab_size, config.num_layers, config.max_seq_len) == (CONFIG.vocab_size, 1, 8)
    saved = SafetensorsFile(folder / "out" / LAST).read("params", np.float32, (N_PARAMETERS,))
    np.testing.assert_array_equal(params.flat, saved)
    assert not params.wte[CONFIG.vocab_size :].any()
    losses = read_log(folder / "out" / "main.log")["tel"]
    assert losses[12] < losses[0]


def test_it_goes_on_from_a_model_file(folder: Path) -> None:
    """The first validation loss with `--init model.bin` is the last one of that model."""
    assert in_process(TRAIN, folder).code == 0
    again = in_process((*TRAIN, "--init", "out/model.bin", "--out", "second"), folder)
    assert again.code == 0
    first, second = (read_log(folder / name / "main.log")["tel"] for name in ("out", "second"))
    assert second[0] == first[12]


def test_the_seed_changes_weights_and_order(folder: Path) -> None:
    """The same seed gives the same bytes, another seed gives others."""
    files = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert in_process((*TRAIN, "--seed", seed, "--out", name), folder).code == 0
        files.append((folder / name / "model.bin").read_bytes())
    assert files[0] == files[1] != files[2]


def test_one_epoch_is_the_default_length(folder: Path) -> None:
    """20 and 16 rows of 8 tokens are 18 updates of 16 tokens."""
    argv = [w for w in TRAIN if w not in ("--steps", "12")]
    outcome = in_process((*argv, "--total-batch", "16"), folder)
    assert outcome.code == 0
    assert b"step   18/18 | loss" in outcome.err


def test_samples_are_text_with_a_tokenizer(folder: Path) -> None:
    """A sample is decoded; the tokenizer sets the vocabulary size of the model."""
    init = "layers=1,heads=2,channels=8,context=8"
    argv = (*TRAIN, "--init", init, "--sample-every", "12", "--sample-tokens", "4")
    outcome = in_process((*argv, "--tokenizer", "bytes"), folder)
    assert outcome.code == 0
    config, params = load_parameters(folder / "out" / "model.bin")
    assert config.vocab_size == 257
    ids = sample(GPT2(config, params, Engine(ops)), 256, 4, "numpy")
    assert outcome.out == load_tokenizer("bytes").decode(ids) + b"\n"


def test_a_reader_who_leaves_does_not_end_the_training(folder: Path) -> None:
    """Training continues when stdout is closed."""
    outcome = as_process((*TRAIN, "--sample-every", "1"), folder, redirect=">&-")
    assert outcome.code == 0
    assert (folder / "out" / "model.bin").exists()


def test_events_as_json_lines(folder: Path) -> None:
    """An object per line on stdout; the run itself is the same."""
    argv = (*TRAIN, "--sample-every", "12", "--sample-tokens", "3", "--json")
    outcome = in_process(argv, folder)
    assert outcome.code == 0, outcome.err.decode()
    events = [json.loads(line) for line in outcome.out.splitlines()]
    names = [event["event"] for event in events]
    assert names[0] == "begin"
    assert names.count("update") == 12
    assert [e["step"] for e in events if e["event"] == "validation"] == [0, 6, 12]
    assert [len(e["ids"]) for e in events if e["event"] == "sample"] == [3]
    end = {"event": "end", "step": 12, "finished": True, "model": "out/model.bin"}
    assert events[-1].items() >= end.items()
    assert events[-1]["validation_loss"] == pytest.approx(
        [e["loss"] for e in events if e["event"] == "validation"][-1]
    )
    assert events[-1]["seconds"] > 0
    assert "--json" not in json.loads((folder / "out/run.json").read_bytes())["arguments"]


# ---- stopping and going on -------------------------------------------------------------------


def wait_for_steps(process: Any, n: int) -> None:
    for line in process.stderr:
        if b"| loss" in line:
            n -= 1
            if n == 0:
                return
    raise AssertionError("it ended before")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_a_signal_finishes_the_step_and_saves(number: int, code: int, folder: Path) -> None:
    """`--resume` then gives the same files, byte for byte."""
    long = (*TRAIN, "--steps", "150", "--schedule", "linear")
    assert in_process((*long, "--out", "whole"), folder).code == 0
    process = start(long, folder)
    wait_for_steps(process, 7)
    process.send_signal(number)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == code
    said = lines_of(err)
    stopped = re.fullmatch(r"pyllm2: stopped after (\d+) of 150 steps", said[-3])
    assert stopped
    assert said[-2:] == [
        "pyllm2: to go on: pyllm2 train gpt2 --out out --resume",
        "pyllm2: model: out/model.bin",
    ]
    assert (folder / "out" / f"step_{int(stopped[1]):08d}.safetensors").exists()
    load_parameters(folder / "out" / "model.bin")

    outcome = in_process(said[-2].removeprefix("pyllm2: to go on: pyllm2 ").split(), folder)
    assert outcome.code == 0
    assert f"resumed from out/step_{int(stopped[1]):08d}.safetensors" in outcome.err.decode()
    for name in ("step_00000150.safetensors", "model.bin"):
        assert (folder / "out" / name).read_bytes() == (folder / "whole" / name).read_bytes()


def test_a_second_interrupt_ends_it_at_once(folder: Path) -> None:
    """It does not wait for the step, here of a large batch, and leaves no partial file."""
    argv = (*TRAIN, "--total-batch", "80000", "--steps", "1", "--val-every", "0")
    process = start(argv, folder)
    for line in process.stderr:  # type: ignore[union-attr]
        if b"backend numpy" in line:
            break
    while not (folder / "out" / "main.log").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None  # the first is heard, and waits for the step
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == -signal.SIGINT
    assert {p.name for p in (folder / "out").iterdir()} == {".lock", ".pid", "main.log", "run.json"}
    assert in_process(TRAIN, folder).code == 0


def test_killed_runs_resume_to_the_same_bytes(tmp_path: Path) -> None:
    """Two kills at random moments; `tools/kill_train.py` does any number."""
    path = Path(__file__).parents[2] / "tools" / "kill_train.py"
    spec = importlib.util.spec_from_file_location("kill_train", path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    kills, _ = tool.kill_often(2, seed=2, folder=tmp_path, ranks=1)
    assert kills == 2


def test_resuming_deletes_what_a_kill_left_to_delete(folder: Path) -> None:
    """Killed between a checkpoint and the deletion of old ones, a run leaves one too many."""
    assert in_process((*TRAIN, "--keep", "1"), folder).code == 0
    newest = checkpoints(str(folder / "out"))[-1][1]
    kept = {p.name for p in (folder / "out").iterdir()}
    (folder / "out" / "step_00000000.safetensors").write_bytes(Path(newest).read_bytes())
    assert in_process((*TRAIN, "--keep", "1", "--resume"), folder).code == 0
    assert {p.name for p in (folder / "out").iterdir()} == kept


def test_a_finished_run_that_is_resumed_does_nothing_more(folder: Path) -> None:
    """It writes model.bin again, which a kill may have prevented."""
    assert in_process(TRAIN, folder).code == 0
    model = (folder / "out" / "model.bin").read_bytes()
    (folder / "out" / "model.bin").unlink()
    outcome = in_process((*TRAIN, "--resume"), folder)
    assert outcome.code == 0
    assert b"| loss" not in outcome.err
    assert b"saved" not in outcome.err
    assert (folder / "out" / "model.bin").read_bytes() == model


def test_another_thread_count_resumes_by_a_flag(folder: Path) -> None:
    """The next checkpoint has the new number."""
    assert in_process((*TRAIN, "--schedule", "constant"), folder).code == 0
    more = (*TRAIN, "--schedule", "constant", "--steps", "14", "--threads", "2", "--resume")
    refused = in_process(more, folder)
    assert refused.code == 1
    assert b"engine.threads = 2 (saved: 1); --other-engine resumes" in refused.err
    assert in_process((*more, "--other-engine"), folder).code == 0
    text = (folder / "out" / "step_00000014.safetensors").read_bytes()
    assert rb"\"threads\": 2" in text


# ---- the rest --------------------------------------------------------------------------------


def test_flags_offer_what_there_is() -> None:
    """The parser has its own lists, because it must not import the training package."""
    assert set(train_flags.SCHEDULES) == set(schedule.NAMES)
    assert train_flags.DECAY_RULES == recipe.DECAY_RULES
