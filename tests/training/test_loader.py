"""Data loader: order of batches, coverage of an epoch, saved state, refusal of bad files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllm2.errors import ConfigError, FileError, FormatError, UsageError
from pyllm2.formats.llmc_tokens import write_shard
from pyllm2.mersenne import MersenneTwister
from pyllm2.training.loader import DIGEST_BLOCK, DataLoader, digest

writes_files = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def data(draw: Any) -> dict[str, Any]:
    """B, T, number of processes, and token counts of shards that hold at least one sample."""
    B, T, processes = draw(st.tuples(*[st.integers(1, 3)] * 3))
    stride = B * T * processes
    counts = draw(st.lists(st.integers(stride + 1, 8 * stride), min_size=1, max_size=4))
    return {"B": B, "T": T, "processes": processes, "counts": counts}


def write(folder: Path, counts: list[int], bytes_per_id: int = 2) -> str:
    """Write shards with the ids 0, 1, 2, … (an id tells its position); returns their pattern."""
    for path in folder.glob("s_*.bin"):
        path.unlink()
    start = 0
    for i, count in enumerate(counts):
        write_shard(folder / f"s_{i:02d}.bin", np.arange(start, start + count), bytes_per_id)
        start += count
    return str(folder / "s_*.bin")


def starts(
    counts: list[int], stride: int, rank: int, BT: int, shuffle: bool, seed: int
) -> Iterator[int]:
    """The first id of each batch, from a second definition of the order; endless."""
    rng = MersenneTwister((seed + rank) % 2**32)
    shards = np.arange(len(counts), dtype=np.int32)
    while True:
        if shuffle:
            rng.permute(shards)
        for shard in shards:
            samples = np.arange((counts[shard] - 1) // stride, dtype=np.int32)
            if shuffle:
                rng.permute(samples)
            for sample in samples:
                yield int(sum(counts[:shard]) + sample * stride + rank * BT)


@writes_files
@given(data(), st.booleans(), st.sampled_from([2, 4]), st.sampled_from([None, 1, 2**32 - 1]))
def test_batches_come_in_the_defined_order(
    tmp_path: Path, data: dict[str, Any], shuffle: bool, bytes_per_id: int, seed: int | None
) -> None:
    """Two epochs of batches have the expected ids, for every rank and both widths of an id."""
    B, T, P, counts = data["B"], data["T"], data["processes"], data["counts"]
    pattern = write(tmp_path, counts, bytes_per_id)
    for rank in range(P):
        seeded = {} if seed is None else {"seed": seed}
        loader = DataLoader(pattern, B, T, rank, P, shuffle, **seeded)
        assert loader.num_tokens == sum(counts)
        expected = starts(counts, B * T * P, rank, B * T, shuffle, 42 if seed is None else seed)
        for _ in range(2 * loader.num_batches + 1):
            x, y = loader.next_batch()
            ids = np.arange(B * T).reshape(B, T) + next(expected)
            assert x.dtype == y.dtype == np.int32
            assert x.flags.c_contiguous
            np.testing.assert_array_equal(x, ids)
            np.testing.assert_array_equal(y, ids + 1)


@writes_files
@given(data(), st.booleans())
def test_an_epoch_reads_every_sample_once(
    tmp_path: Path, data: dict[str, Any], shuffle: bool
) -> None:
    """All ranks together read every token but the incomplete sample at the end of each shard."""
    B, T, P, counts = data["B"], data["T"], data["processes"], data["counts"]
    pattern = write(tmp_path, counts)
    seen: Counter[int] = Counter()
    for rank in range(P):
        loader = DataLoader(pattern, B, T, rank, P, shuffle)
        for _ in range(loader.num_batches):
            seen.update(loader.next_batch()[0].ravel().tolist())
    usable = [
        sum(counts[:i]) + k
        for i, count in enumerate(counts)
        for k in range((count - 1) // (B * T * P) * B * T * P)
    ]
    assert seen == Counter(usable)


@writes_files
@given(data(), st.booleans(), st.integers(0, 40))
def test_a_restored_loader_continues_exactly(
    tmp_path: Path, data: dict[str, Any], shuffle: bool, before: int
) -> None:
    """Another loader of the same files with the saved state gives the same batches."""
    arguments = (write(tmp_path, data["counts"]), data["B"], data["T"], 0, data["processes"])
    loader, other = DataLoader(*arguments, shuffle), DataLoader(*arguments, shuffle)
    for _ in range(before):
        loader.next_batch()
    state = loader.state()
    expected = [loader.next_batch()[0] for _ in range(loader.num_batches + 3)]
    other.restore(state)
    for x in expected:
        np.testing.assert_array_equal(other.next_batch()[0], x)
    loader.restore(state)  # the state is a copy: the loader did not change it
    np.testing.assert_array_equal(loader.next_batch()[0], expected[0])


@writes_files
@given(data(), st.booleans(), st.integers(0, 20))
def test_a_reset_begins_a_new_epoch(
    tmp_path: Path, data: dict[str, Any], shuffle: bool, before: int
) -> None:
    """`reset` goes to the first sample of an epoch; shuffling permutes the previous order."""
    B, T, counts = data["B"], data["T"], data["counts"]
    loader = DataLoader(write(tmp_path, counts), B, T, shuffle=shuffle)
    rng = MersenneTwister(42)
    order = np.arange(len(counts), dtype=np.int32)

    def draw_epoch() -> tuple[int, np.ndarray]:  # type: ignore[type-arg]
        if shuffle:
            rng.permute(order)
        samples = np.arange((counts[order[0]] - 1) // (B * T), dtype=np.int32)
        if shuffle:
            rng.permute(samples)
        return int(order[0]), samples

    draw_epoch()
    for _ in range(min(before, (counts[order[0]] - 1) // (B * T))):
        loader.next_batch()
    shard, samples = draw_epoch()
    loader.reset()
    for sample in samples:
        expected = sum(counts[:shard]) + sample * B * T
        assert loader.next_batch()[0][0, 0] == expected


def test_resume_continues_at_a_sample_of_a_shard(tmp_path: Path) -> None:
    """Reading continues there and passes to the next shard; a shuffled loader refuses."""
    loader = DataLoader(write(tmp_path, [41, 61]), 2, 5)
    loader.resume(1, 4)
    assert [int(loader.next_batch()[0][0, 0]) for _ in range(3)] == [81, 91, 0]
    loader.resume(0, 4)
    assert loader.next_batch()[0][0, 0] == 41
    shuffled = DataLoader(str(tmp_path / "s_*.bin"), 2, 5, shuffle=True)
    with pytest.raises(UsageError, match="whole state"):
        shuffled.resume(0, 0)


def test_files_are_sorted_by_the_bytes_of_their_names(tmp_path: Path) -> None:
    """The order does not depend on the locale; an existing name with brackets is no pattern."""
    for i, name in enumerate(["b.bin", "B.bin", "a[1].bin", "\u00e9.bin"]):
        write_shard(tmp_path / name, np.full(9, i))
    loader = DataLoader(tmp_path / "*.bin", 1, 8)
    assert [int(loader.next_batch()[0][0, 0]) for _ in range(4)] == [1, 2, 0, 3]
    assert DataLoader(tmp_path / "a[1].bin", 1, 8).next_batch()[0][0, 0] == 2


def test_a_pattern_that_the_shell_has_expanded_is_the_same_data(tmp_path: Path) -> None:
    """Several names, in any order and repeated, are read as the pattern is."""
    pattern = write(tmp_path, [9, 9, 9])
    names = [str(tmp_path / f"s_{i:02d}.bin") for i in (2, 0, 1, 0)]
    found = [[shard.path for shard in DataLoader(p, 1, 2).shards] for p in (pattern, names)]
    assert found[0] == found[1] == sorted(names[:3])


def test_the_description_changes_with_the_data(tmp_path: Path) -> None:
    """It has name, count and digest of each shard; the digest covers every byte of a small file."""
    pattern = write(tmp_path, [30, 40])
    before = DataLoader(pattern, 1, 8).describe()
    assert json.loads(json.dumps(before)) == before
    assert [shard["name"] for shard in before["shards"]] == ["s_00.bin", "s_01.bin"]
    assert [shard["tokens"] for shard in before["shards"]] == [30, 40]
    file = tmp_path / "s_01.bin"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    after = DataLoader(pattern, 1, 8).describe()
    assert after["shards"][0] == before["shards"][0]
    assert after["shards"][1]["digest"] != before["shards"][1]["digest"]


def test_the_digest_of_a_large_file_samples_its_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest depends on the size, the first and the last block, and some blocks between."""
    monkeypatch.setattr("pyllm2.training.loader.DIGEST_BLOCKS", 3)
    path = tmp_path / "large"
    good = bytes(5 * DIGEST_BLOCK - 7)

    def changed(at: int) -> bool:
        path.write_bytes(good)
        before = digest(str(path))
        path.write_bytes(good[:at] + b"\x01" + good[at + 1 :])
        return digest(str(path)) != before

    seen = [changed(block * DIGEST_BLOCK) for block in range(5)]
    assert seen == [True, False, True, False, True]
    assert changed(len(good) - 1)
    path.write_bytes(bytes(5 * DIGEST_BLOCK))
    before = digest(str(path))
    path.write_bytes(bytes(4 * DIGEST_BLOCK))
    assert digest(str(path)) != before


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"shard": 2}, "data shard = 2: there are 2"),
        ({"shard": -1}, "data shard = -1: there are 2"),
        ({"sample": 5}, "data sample = 5: this shard has 4"),
        ({"sample": -1}, "data sample = -1: this shard has 4"),
        ({"shard_order": [0, 0]}, "data shard_order = 2: expected an order of 2"),
        ({"sample_order": [0, 1, 2]}, "data sample_order = 3: expected an order of 4"),
        ({"sample_order": [1, 2, 3, 4]}, "data sample_order = 4: expected an order of 4"),
        ({"rng_position": 625}, "data rng_position = 625: of 624 words"),
        ({"rng_words": np.zeros(623, np.uint32)}, "data rng_position = 0: of 623 words"),
        (
            {"more": 1},
            (
                "data fields = 7: expected rng_position, rng_words, sample, sample_order, shard, "
                "shard_order"
            ),
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused(
    changes: dict[str, Any], error: str, tmp_path: Path
) -> None:
    """The message names the field, and the loader keeps its state."""
    loader = DataLoader(write(tmp_path, [41, 41]), 2, 5, shuffle=True)
    good = {
        "shard": 0,
        "sample": 0,
        "shard_order": [0, 1],
        "sample_order": [0, 1, 2, 3],
        "rng_words": np.zeros(624, np.uint32),
        "rng_position": 0,
    }
    before = loader.state()
    with pytest.raises(ConfigError) as refused:
        loader.restore({**good, **changes})
    assert str(refused.value) == error
    for name, value in loader.state().items():
        np.testing.assert_array_equal(value, before[name])
    loader.restore(good)


@pytest.mark.parametrize("sizes", [(0, 1, 0, 1), (1, 0, 0, 1), (1, 1, 1, 1), (1, 1, -1, 1)])
def test_impossible_batch_sizes_are_refused(
    sizes: tuple[int, int, int, int], tmp_path: Path
) -> None:
    """Sizes and ranks are checked before the files."""
    with pytest.raises(UsageError, match="impossible batch"):
        DataLoader(tmp_path / "none", *sizes)


@pytest.mark.parametrize("folder", ["run[1]", "a*b", "what?", "[!x]"])
def test_the_folder_of_a_pattern_may_have_letters_of_patterns(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that exists is meant as it is; without one, its name is a pattern too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir()
    for name in ("train_0.bin", "train_1.bin"):
        write_shard(tmp_path / folder / name, np.arange(50))
    for pattern in (f"{folder}/train*.bin", f"{tmp_path}/{folder}/train*.bin", "*/train*.bin"):
        assert len(DataLoader(pattern, 1, 4).shards) == 2


@pytest.mark.parametrize("pattern", ["no*.bin", "", "no.bin"])
def test_a_pattern_must_match(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 33: a pattern that matches no file is refused."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError) as refused:
        DataLoader(pattern, 1, 1)
    shown = pattern or "''"
    assert str(refused.value) == f"{shown}: matches no file"


@pytest.mark.parametrize(("processes", "words"), [(1, ""), (2, " processes=2")])
def test_a_shard_must_hold_a_sample(processes: int, words: str, tmp_path: Path) -> None:
    """Row 33: a shard needs one token more than the inputs of a sample."""
    B, T = 4, 8
    least = processes * B * T + 1
    DataLoader(write(tmp_path, [least]), B, T, 0, processes)
    with pytest.raises(FormatError) as refused:
        DataLoader(write(tmp_path, [least, least - 1]), B, T, 0, processes)
    assert str(refused.value) == (
        f"{tmp_path}/s_01.bin: needs {least} tokens for B=4 T=8{words}, has {least - 1}"
    )


def test_a_shard_truncated_after_opening_is_refused(tmp_path: Path) -> None:
    """Reading past the new end names the size now, also if the read begins behind it."""
    for left, batches in ((1100, 1), (1080, 1), (1024, 0)):
        loader = DataLoader(write(tmp_path, [100]), 2, 10)
        (tmp_path / "s_00.bin").write_bytes(bytes(left))
        for _ in range(batches):
            loader.next_batch()
        wanted = 1024 + 2 * (20 * (batches + 1) + 1)
        with pytest.raises(FileError) as refused:
            loader.next_batch()
        says = f"size = {left} bytes: was at least {wanted} when first opened"
        assert str(refused.value) == f"{tmp_path}/s_00.bin: {says}"


def test_batches_equal_the_recorded_ones(shared: Path) -> None:
    """Every id of llm.c's loader, with ranks, shuffling, resets and resumes."""
    folder = shared / "golden/llmc/dataloader"
    runs = json.loads((folder / "runs.json").read_text())
    with np.load(folder / "sequences.npz") as recorded:
        for name, run in runs.items():
            loader = DataLoader(
                folder / "shards" / run["pattern"],
                run["B"],
                run["T"],
                run["process_rank"],
                run["num_processes"],
                bool(run["should_shuffle"]),
            )
            assert loader.num_tokens == run["num_tokens"]
            batches = []
            for step, *numbers in run["script"]:
                if step == "next":
                    batches += [loader.next_batch() for _ in range(numbers[0])]
                else:
                    getattr(loader, step)(*numbers)
            for i, part in enumerate(("inputs", "targets")):
                found = np.array([batch[i] for batch in batches])
                np.testing.assert_array_equal(found, recorded[f"{name}__{part}"], err_msg=name)
