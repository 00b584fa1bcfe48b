"""`pyllm2 train gpt2` as a user meets it: what it prints and leaves, signals, resuming."""

from __future__ import annotations

import importlib.util
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllm2.cli import training_arguments
from pyllm2.formats.safetensors_file import SafetensorsFile
from pyllm2.gpt2 import ops
from pyllm2.gpt2.decoding import Decoder
from pyllm2.gpt2.files import load_parameters
from pyllm2.gpt2.model import GPT2
from pyllm2.gpt2.tokenizer import load_tokenizer
from pyllm2.training import recipe, schedule
from pyllm2.training.log import read_log
from pyllm2.training.sample import sample

from .program import as_process, in_process, start
from .toy_training import PARAMETERS, TRAIN, VOCAB, write_shards

LAST = "step_00000012.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Shards, and nothing else."""
    write_shards(tmp_path)
    return tmp_path


def lines_of(err: bytes) -> list[str]:
    return err.decode().splitlines()


def test_a_run_from_start_to_end(folder: Path) -> None:
    """Progress on stderr, samples on stdout, four files and a lock in the folder."""
    outcome = as_process((*TRAIN, "--sample-every", "6", "--sample-tokens", "5"), folder)
    assert outcome.code == 0
    samples = outcome.out.decode().splitlines()
    assert len(samples) == 2  # after 6 and 12 steps
    for text in samples:
        ids = [int(word) for word in text.split()]
        assert len(ids) == 5
        assert all(0 <= i < VOCAB for i in ids)

    said = lines_of(outcome.err)
    assert re.match(rf"pyllm2: {PARAMETERS:,} parameters; memory: 0 MB for parameters", said[0])
    assert said[1] == "pyllm2: backend numpy, 1 threads"
    steps = [
        re.match(r"pyllm2: step +(\d+)/12 \| loss [\d.]+ \| norm [\d.]+ \| lr", s) for s in said
    ]
    assert [int(m[1]) for m in steps if m] == list(range(1, 13))
    validated = [re.match(r"pyllm2: step +(\d+)/12 \| validation loss \d\.\d{6}$", s) for s in said]
    assert [int(m[1]) for m in validated if m] == [0, 6, 12]
    assert re.match(r"pyllm2: 12 steps in .* tokens/s .*, peak memory [\d,]+ MB$", said[-2])
    assert said[-1] == "pyllm2: model: out/model.bin"

    names = {p.name for p in (folder / "out").iterdir()} - {".lock", "loss.png"}
    assert names == {"main.log", "model.bin", "step_00000010.safetensors", LAST}
    log = read_log(folder / "out" / "main.log")
    assert list(log["trl"]) == list(range(12))
    assert list(log["tel"]) == [0, 6, 12]


def test_the_model_is_that_of_the_last_checkpoint(folder: Path) -> None:
    """In llm.c's format, the padding rows still zero, and something was learned."""
    assert in_process(TRAIN, folder).code == 0
    config, params = load_parameters(folder / "out" / "model.bin")
    assert (config.vocab_size, config.num_layers, config.max_seq_len) == (VOCAB, 1, 8)
    saved = SafetensorsFile(folder / "out" / LAST).read("params", np.float32, (PARAMETERS,))
    np.testing.assert_array_equal(params.flat, saved)
    assert not params.wte[VOCAB:].any()
    losses = read_log(folder / "out" / "main.log")["tel"]
    assert losses[12] < losses[0]


def test_it_goes_on_from_a_model_file(folder: Path) -> None:
    """`--init model.bin` begins where that model ended: its validation loss is the first."""
    assert in_process(TRAIN, folder).code == 0
    again = in_process((*TRAIN, "--init", "out/model.bin", "--out", "second"), folder)
    assert again.code == 0
    first, second = (read_log(folder / name / "main.log")["tel"] for name in ("out", "second"))
    assert second[0] == first[12]


def test_the_seed_changes_weights_and_order(folder: Path) -> None:
    """And the same seed gives the same bytes."""
    files = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert in_process((*TRAIN, "--seed", seed, "--out", name), folder).code == 0
        files.append((folder / name / "model.bin").read_bytes())
    assert files[0] == files[1] != files[2]


def test_one_epoch_is_the_default_length(folder: Path) -> None:
    """20 and 16 samples of 8 tokens, at 16 tokens an update."""
    argv = [w for w in TRAIN if w not in ("--steps", "12")]
    outcome = in_process((*argv, "--total-batch", "16"), folder)
    assert outcome.code == 0
    assert b"step   18/18 | loss" in outcome.err


def test_samples_are_text_with_a_tokenizer(folder: Path) -> None:
    """The bytes of what the model wrote after an end of text; its size says the vocabulary's."""
    init = "layers=1,heads=2,channels=8,context=8"
    argv = (*TRAIN, "--init", init, "--sample-every", "12", "--sample-tokens", "4")
    outcome = in_process((*argv, "--tokenizer", "bytes"), folder)
    assert outcome.code == 0
    config, params = load_parameters(folder / "out" / "model.bin")
    assert config.vocab_size == 257
    ids = sample(Decoder(GPT2(config, params, ops)), 256, 4, "numpy")
    assert outcome.out == load_tokenizer("bytes").decode(ids) + b"\n"


def test_a_reader_who_leaves_does_not_end_the_training(folder: Path) -> None:
    """stdout is for samples only."""
    outcome = as_process((*TRAIN, "--sample-every", "1"), folder, redirect=">&-")
    assert outcome.code == 0
    assert (folder / "out" / "model.bin").exists()


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
    """Then `--resume` ends as if nothing had happened, byte for byte."""
    long = (*TRAIN, "--steps", "150", "--schedule", "linear")
    assert in_process((*long, "--out", "whole"), folder).code == 0
    process = start(long, folder)
    wait_for_steps(process, 7)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    said = lines_of(err)
    stopped = re.fullmatch(r"pyllm2: stopped after (\d+) of 150 steps; --resume goes on", said[-1])
    assert stopped
    assert (folder / "out" / f"step_{int(stopped[1]):08d}.safetensors").exists()
    assert not (folder / "out" / "model.bin").exists()

    outcome = in_process((*long, "--resume"), folder)
    assert outcome.code == 0
    assert f"resumed from out/step_{int(stopped[1]):08d}.safetensors" in outcome.err.decode()
    for name in ("step_00000150.safetensors", "model.bin"):
        assert (folder / "out" / name).read_bytes() == (folder / "whole" / name).read_bytes()


def test_a_second_interrupt_ends_it_at_once(folder: Path) -> None:
    """Without waiting for the step, here one of a large batch; nothing half-written is left."""
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
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert {p.name for p in (folder / "out").iterdir()} == {".lock", ".pid", "main.log"}
    assert in_process(TRAIN, folder).code == 0


def test_killed_runs_resume_to_the_same_bytes(tmp_path: Path) -> None:
    """Three kills at random moments; `tools/kill_train.py` does as many as one likes."""
    path = Path(__file__).parents[2] / "tools" / "kill_train.py"
    spec = importlib.util.spec_from_file_location("kill_train", path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    kills, _ = tool.kill_often(3, seed=2, folder=tmp_path)
    assert kills == 3


def test_a_finished_run_that_is_resumed_does_nothing_more(folder: Path) -> None:
    """It writes its model again, which a kill may have prevented."""
    assert in_process(TRAIN, folder).code == 0
    model = (folder / "out" / "model.bin").read_bytes()
    (folder / "out" / "model.bin").unlink()
    outcome = in_process((*TRAIN, "--resume"), folder)
    assert outcome.code == 0
    assert b"| loss" not in outcome.err
    assert b"saved" not in outcome.err
    assert (folder / "out" / "model.bin").read_bytes() == model


def test_another_thread_count_resumes_by_force(folder: Path) -> None:
    """And the new one goes into the next checkpoint."""
    assert in_process((*TRAIN, "--schedule", "constant"), folder).code == 0
    more = (*TRAIN, "--schedule", "constant", "--steps", "14", "--threads", "2", "--resume")
    refused = in_process(more, folder)
    assert refused.code == 1
    assert b"engine.threads = 2 (saved: 1); with --force it goes on" in refused.err
    assert in_process((*more, "--force"), folder).code == 0
    text = (folder / "out" / "step_00000014.safetensors").read_bytes()
    assert rb"\"threads\": 2" in text


# ---- the rest --------------------------------------------------------------------------------


def test_flags_offer_what_there_is() -> None:
    """The parser, which must start quickly, has lists of its own."""
    assert set(training_arguments.SCHEDULES) == set(schedule.NAMES)
    assert training_arguments.DECAY_RULES == recipe.DECAY_RULES


def test_the_curve_is_drawn(folder: Path) -> None:
    """In the folder, or where one says."""
    pytest.importorskip("matplotlib")
    assert in_process(TRAIN, folder).code == 0
    assert (folder / "out" / "loss.png").read_bytes().startswith(b"\x89PNG")
    argv = (*TRAIN, "--resume", "--plot", "curve.svg")
    assert in_process(argv, folder).code == 0
    assert b"<svg" in (folder / "curve.svg").read_bytes()
