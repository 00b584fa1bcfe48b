"""Runs of llm.c's CUDA trainer that go on here: states, parts of ZeRO-1, place in the data."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pyllm2.errors import FileError, FormatError
from pyllm2.formats.llmc_state import read_state
from pyllm2.training import llmc_run
from pyllm2.training.checkpoint import CheckpointFile
from pyllm2.training.loader import DataLoader
from tests.support.command import in_process
from tests.support.golden import shared_folder
from tests.support.toy_training import CONFIG, N_PARAMETERS, TRAIN, write_shards

SHARED = shared_folder()
SHAPES = dataclasses.replace(CONFIG, padded_vocab_size=128).shapes()  # that of TRAIN
Array = NDArray[np.float32]


def part(whole: Array, rank: int, processes: int) -> Array:
    """What a process keeps under ZeRO-1, tensor by tensor and layer by layer (llm.c 8.6)."""
    found, start = [], 0
    for name, shape in SHAPES.items():
        layers = 1 if name in ("wte", "wpe", "lnfw", "lnfb") else shape[0]
        for _ in range(layers):
            size = int(np.prod(shape)) // layers
            piece = size // processes
            found.append(whole[start + rank * piece : start + (rank + 1) * piece])
            start += size
    return np.concatenate(found)


def state_bytes(
    arrays: list[Array], step: int, rank: int = 0, processes: int = 1, **loader: Any
) -> bytes:
    """A state as llm.c writes it (1.6); three arrays: with master weights."""
    head = [20240527, 1, processes, rank, len(arrays) - 2, int("shard_order" in loader)]
    fields = [*head, *[0] * 4, step, *[0] * 245]
    for i, name in ((30, "shard"), (32, "sample")):
        fields[i] = loader.get(name, 0)
    data = struct.pack("<256i", *fields) + b"".join(a.astype("<f4").tobytes() for a in arrays)
    if "shard_order" not in loader:
        return data
    for name in ("shard_order", "sample_order"):
        data += struct.pack("<Q", len(loader[name])) + loader[name].astype("<i4").tobytes()
    position = loader["rng_position"]
    data += b"garbage." + struct.pack("<iI", 625 - position, position % 624)
    return data + loader["rng_words"].astype("<u4").tobytes() + struct.pack("<II", 0, 0x9908B0DF)


def write_run(folder: Path, step: int, states: list[bytes], model: bytes = b"") -> None:
    folder.mkdir()
    for rank, state in enumerate(states):
        (folder / f"state_{step:08d}_{rank:05d}.bin").write_bytes(state)
    (folder / f"model_{step:08d}.bin").write_bytes(model)
    (folder / f"DONE_{step:08d}").write_bytes(b"")


@pytest.mark.skipif(SHARED is None, reason="no recordings of llm.c")
@pytest.mark.parametrize("name", ["state_00000013_00000", "state_noshuffle"])
def test_recorded_states(name: str) -> None:
    """Arrays, step and the next 40 batches of states that llm.c's own code has written."""
    assert SHARED is not None
    folder = SHARED / "golden" / "llmc" / "state"
    said = json.loads((folder / f"{name}.json").read_text())
    arrays = np.load(folder / f"{name}.npz")
    state = read_state(folder / f"{name}.bin", said["shard_num_parameters"])
    assert (state.step, state.processes, state.rank) == (13, 1, 0)
    np.testing.assert_array_equal(state.m, arrays["m"])
    np.testing.assert_array_equal(state.v, arrays["v"])
    assert (state.master is None) == ("master" not in arrays)
    if state.master is not None:
        np.testing.assert_array_equal(state.master, arrays["master"])
    loader = DataLoader(str(folder / said["pattern"]), said["B"], said["T"], shuffle=state.shuffles)
    loader.restore(state.loader)
    for expected in arrays["next_inputs"]:
        np.testing.assert_array_equal(loader.next_batch()[0], expected)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("master", [False, True])
def test_the_parts_are_put_together(
    processes: int, zero: bool, master: bool, tmp_path: Path
) -> None:
    """m, v and master weights of all processes, with and without ZeRO-1."""
    rng = np.random.default_rng(processes)
    wholes = [rng.standard_normal(N_PARAMETERS).astype(np.float32) for _ in range(3)]
    kept = wholes[: 2 + master]
    states = [
        state_bytes([part(a, rank, processes) if zero else a for a in kept], 7, rank, processes)
        for rank in range(processes)
    ]
    write_run(tmp_path / "run", 7, states)
    found = llmc_run.read_run(str(tmp_path / "run"), SHAPES, lambda: wholes[2])
    assert found.step == 7
    for name, whole in zip(("m", "v", "params"), wholes, strict=True):
        np.testing.assert_array_equal(getattr(found, name), whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: 20240526}, "magic = 20240526"),
        ({1: 2}, "version = 2"),
        ({2: 3}, r"bytes: a state of 1976 parameters has \d+$"),
        ({3: 2}, r"rank = 2 \(byte 12\): expected 0 to 1"),
        ({3: 0}, "rank = 0: expected 1"),
        ({4: 2}, r"master weights = 2 \(byte 16\)"),
        ({4: 1}, "bytes: a state of 1976 parameters has"),
        ({5: 1}, "bytes: a state of 1976 parameters has"),
        ({10: 8}, "step = 8: expected 7"),
        ({31: 9}, r"shard = \d+ \(byte 120\)"),
    ],
    ids=str,
)
def test_states_that_do_not_fit_are_refused(
    change: dict[int, int], message: str, tmp_path: Path
) -> None:
    """One line that names file and field, whatever the header says."""
    m = np.zeros(N_PARAMETERS // 2, np.float32)
    states = [bytearray(state_bytes([m, m], 7, rank, 2)) for rank in range(2)]
    for field, value in change.items():
        struct.pack_into("<i", states[1], 4 * field, value)
    write_run(tmp_path / "run", 7, list(map(bytes, states)))
    with pytest.raises(FormatError, match=message) as caught:
        llmc_run.read_run(str(tmp_path / "run"), SHAPES, lambda: m)
    assert caught.value.path.endswith("state_00000007_00001.bin")


def test_a_missing_state_is_named(tmp_path: Path) -> None:
    m = np.zeros(N_PARAMETERS // 2, np.float32)
    write_run(tmp_path / "run", 7, [state_bytes([m, m], 7, 0, 2)])
    with pytest.raises(FileError, match=r"state_00000007_00001\.bin: no such file"):
        llmc_run.read_run(str(tmp_path / "run"), SHAPES, lambda: m)


@pytest.mark.usefixtures("no_plots")
def test_a_run_of_llm_c_goes_on(tmp_path: Path) -> None:
    """To the same bytes as a run that was never written in llm.c's files; then it is resumed."""
    write_shards(tmp_path)
    assert in_process((*TRAIN, "--schedule", "constant"), tmp_path).code == 0
    first = (*TRAIN, "--schedule", "constant", "--steps", "5", "--out", "first")
    assert in_process(first, tmp_path).code == 0
    saved = CheckpointFile(tmp_path / "first" / "step_00000005.safetensors").read(N_PARAMETERS)
    m, v = (np.asarray(x[0:N_PARAMETERS]) for x in (saved.m, saved.v))
    state = state_bytes([m, v], 5, **saved.loader)
    write_run(tmp_path / "llmc", 5, [state], (tmp_path / "first" / "model.bin").read_bytes())

    argv = (*TRAIN, "--schedule", "constant", "--init", "llmc", "--out", "second")
    outcome = in_process((*argv, "--steps", "8"), tmp_path)
    assert outcome.code == 0, outcome.err.decode()
    assert b"goes on from step 5 of llm.c in llmc" in outcome.err
    more = "train gpt2 --out second --resume --steps 12".split()
    assert in_process(more, tmp_path).code == 0
    expected = (tmp_path / "out" / "model.bin").read_bytes()
    assert (tmp_path / "second" / "model.bin").read_bytes() == expected

    outcome = in_process((*argv, "--out", "third", "--steps", "4"), tmp_path)
    assert outcome.err.decode().endswith("llmc: step 5 is beyond the run's 4\n")
    assert not (tmp_path / "third").exists()
    outcome = in_process((*argv, "--out", "third", "--batch", "1"), tmp_path)
    assert outcome.code == 1
    assert b"must be those of llm.c's run" in outcome.err
    (tmp_path / "llmc" / "DONE_00000005").unlink()
    outcome = in_process((*argv, "--out", "third"), tmp_path)
    assert outcome.code == 1
    assert outcome.err.startswith(b"pyllm2: error: llmc: has no checkpoint of llm.c")
