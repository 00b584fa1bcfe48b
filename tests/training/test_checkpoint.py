"""Checkpoints: all of a run in one file, the same bytes for the same steps, nothing else taken."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.errors import FileError, FormatError, PyLLM2Error
from pyllm2.formats.safetensors_file import SafetensorsFile, write_safetensors
from pyllm2.training.checkpoint import KEY, CheckpointFile, differences
from pyllm2.training.folder import checkpoints, open_folder

from ..tested import BACKENDS
from .conftest import Ready
from .toy import PLAN, Record, run_in, trainer


def stop_after(it: Any, record: Record, steps: int) -> None:
    it.stopped = lambda: len(record.updates) >= steps


def finished(out: Path, data: Path, **options: Any) -> bytes:
    """The last checkpoint of a run that nothing has interrupted."""
    with ExitStack() as stack:
        run_in(stack, out, data, **options).run()
    return Path(checkpoints(str(out))[-1][1]).read_bytes()


def in_parts(out: Path, data: Path, stops: list[int], **options: Any) -> bytes:
    """The same, stopped after each of these numbers of steps and started anew from the file."""
    for i, steps in enumerate([*stops, 10**6]):
        with ExitStack() as stack:
            record = Record()
            it = run_in(stack, out, data, resume=i > 0, report=record, **options)
            if i > 0:
                file = CheckpointFile(it.folder.newest())
                file.require_same_run(it.identity, force=False)
                it.restore(file.read(it.model.params.flat.size))
            stop_after(it, record, steps)
            it.run()
    return Path(checkpoints(str(out))[-1][1]).read_bytes()


@pytest.mark.parametrize("stops", [[1], [4], [5, 1, 3], [11]], ids=str)
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_n_and_m_steps_are_n_plus_m_steps(
    stops: list[int], schedule: str, data: Path, tmp_path: Path
) -> None:
    """Byte for byte: nothing that the next step depends on is forgotten, nothing tells the time.

    16 tokens an update, 36 samples an epoch of two shards: 40 updates cross epochs and shards.
    """
    options: dict[str, Any] = {"steps": 40, "schedule": schedule}
    whole = finished(tmp_path / "whole", data, **options)
    assert in_parts(tmp_path / "parts", data, stops, **options) == whole


@pytest.mark.parametrize("backend", BACKENDS)
def test_on_every_backend(backend: str, data: Path, tmp_path: Path, ready: Ready) -> None:
    """With one thread: 12 steps, and 5 then 7."""
    ready(backend)
    whole = finished(tmp_path / "whole", data, backend=backend)
    assert in_parts(tmp_path / "parts", data, [5], backend=backend) == whole


def test_the_detectors_go_on_too(data: Path, tmp_path: Path) -> None:
    """Past their first 128 steps, with updates that are skipped."""
    options: dict[str, Any] = {"steps": 140, "skip_norm_z": 0.1, "total_batch": 8}
    record = Record()
    whole = finished(tmp_path / "whole", data, report=record, **options)
    assert any(update.skipped for update in record.updates)
    assert in_parts(tmp_path / "parts", data, [131], **options) == whole


def test_a_constant_rate_can_be_extended(data: Path, tmp_path: Path) -> None:
    """More steps later are more steps at once."""
    whole = finished(tmp_path / "whole", data, steps=9)
    finished(tmp_path / "parts", data, steps=4)
    assert in_parts_from(tmp_path / "parts", data, steps=9) == whole


def in_parts_from(out: Path, data: Path, **options: Any) -> bytes:
    with ExitStack() as stack:
        it = run_in(stack, out, data, resume=True, **options)
        file = CheckpointFile(it.folder.newest())
        file.require_same_run(json.loads(json.dumps(it.identity)), force=False)
        it.restore(file.read(it.model.params.flat.size))
        it.run()
    return Path(checkpoints(str(out))[-1][1]).read_bytes()


def test_the_newest_are_kept(data: Path, tmp_path: Path) -> None:
    """`keep` of them; what else is in the folder is left alone."""
    (tmp_path / "step_notes.safetensors").write_text("mine")
    with ExitStack() as stack:
        it = run_in(stack, tmp_path, data, steps=11)
        it.run()
        assert it.folder.newest() == str(tmp_path / "step_00000011.safetensors")
    assert [step for step, _ in checkpoints(str(tmp_path))] == [8, 11]
    assert (tmp_path / "step_notes.safetensors").read_text() == "mine"


def test_an_older_one_is_deleted_only_after_the_newer_is_there(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails leaves all of the old ones."""
    with ExitStack() as stack:
        it = run_in(stack, tmp_path, data)
        it.plan = PLAN
        it.save()
        it.learn()
        it.save()
        before = checkpoints(str(tmp_path))
        it.learn()

        def full(*arguments: Any) -> None:
            raise FileError("step", "no space left on device")

        monkeypatch.setattr("pyllm2.training.checkpoint.write_safetensors", full)
        with pytest.raises(FileError, match="no space left"):
            it.save()
    assert checkpoints(str(tmp_path)) == before


def test_a_file_system_that_is_full_keeps_the_previous(data: Path, tmp_path: Path) -> None:
    """The real thing: a file may not grow beyond 4 KiB. One line, no temporary, and it resumes."""
    record = Record()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ExitStack() as stack:
        it = run_in(stack, tmp_path, data, report=record)
        stop_after(it, record, 5)
        it.run()
        before = sorted(p.name for p in tmp_path.iterdir())
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            it.step += 1
            with pytest.raises(FileError, match=r"step_00000006\.safetensors: file too large"):
                it.save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert in_parts_from(tmp_path, data) == finished(tmp_path / "whole", data)


def test_temporaries_of_a_killed_run_go(data: Path, tmp_path: Path) -> None:
    """At the next start, and nothing else."""
    for name in (".pyllm2-abc.tmp", ".other.tmp", "pyllm2-abc.tmp"):
        (tmp_path / name).write_text("x")
    with open_folder(tmp_path, resume=False):
        names = {p.name for p in tmp_path.iterdir()}
    assert names == {".lock", ".pid", ".other.tmp", "main.log", "pyllm2-abc.tmp"}


# ---- what is refused -------------------------------------------------------------------------


def test_a_second_run_in_a_folder_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    """And when the first has ended the folder is free."""
    import os

    with (
        open_folder(tmp_path, resume=False),
        pytest.raises(FileError, match=f"process {os.getpid()} is training into it"),
        open_folder(tmp_path, resume=False),
    ):
        pass
    with open_folder(tmp_path, resume=False):
        pass


def test_a_run_is_not_overwritten_nor_resumed_from_nothing(data: Path, tmp_path: Path) -> None:
    """Both are said before anything is touched."""
    with pytest.raises(FileError, match="has no checkpoint to resume from"):
        open_folder(tmp_path, resume=True).__enter__()
    finished(tmp_path, data)
    log = (tmp_path / "main.log").read_bytes()
    with pytest.raises(FileError, match="has a run already: --resume goes on with it"):
        open_folder(tmp_path, resume=False).__enter__()
    assert (tmp_path / "main.log").read_bytes() == log


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    """A file, or below a file."""
    (tmp_path / "f").write_text("")
    for path, reason in (("f", "is a file, expected a folder"), ("f/g", "not a directory")):
        with pytest.raises(FileError, match=reason):
            open_folder(tmp_path / path, resume=False).__enter__()


@pytest.fixture(scope="module")
def saved(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good checkpoint, not to be written to."""
    out = tmp_path_factory.mktemp("saved")
    finished(out, data)
    return Path(checkpoints(str(out))[-1][1])


def test_another_run_is_refused_with_all_that_differs(data: Path, saved: Path) -> None:
    """Model, recipe, data: `--force` does not help."""
    identity = trainer(data, batch=1, seed=7).identity
    identity["model"]["num_layers"] = 2
    expected = (
        r"of another run: model\.num_layers = 2 \(saved: 1\), recipe\.batch = 1 \(saved: 2\), "
        r"recipe\.seed = 7 \(saved: 42\)$"
    )
    for force in (False, True):
        with pytest.raises(FileError, match=expected):
            CheckpointFile(saved).require_same_run(identity, force)


def test_another_engine_passes_by_force_only(data: Path, saved: Path) -> None:
    """It computes the same but for its last bits, and the user is told."""
    identity = trainer(data).identity
    identity["engine"] = {"backend": "other", "threads": 3}
    file = CheckpointFile(saved)
    file.require_same_run(identity, force=True)
    expected = (
        r'engine\.backend = "other" \(saved: "numpy"\), engine\.threads = 3 \(saved: null\); '
        r"with --force it goes on, and its last bits may differ$"
    )
    with pytest.raises(FileError, match=expected):
        file.require_same_run(identity, force=False)


def test_differences_go_into_lists() -> None:
    """A shard that was changed is named by its place; lists of other lengths are shown whole."""
    a = {"shards": [{"tokens": 5}, {"tokens": 6}], "x": 1}
    b = {"shards": [{"tokens": 5}, {"tokens": 7}], "y": 2}
    assert differences(a, b) == [
        "shards[1].tokens = 7 (saved: 6)", "x = null (saved: 1)", "y = 2 (saved: null)"
    ]  # fmt: skip
    assert differences([1], [1, 2], "l") == ["l = [1, 2] (saved: [1])"]
    assert differences(a, a) == []


def damaged(
    saved: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]
) -> dict[str, Any]:
    """The arrays and the metadata's JSON, changed."""
    arrays = dict(safetensors.numpy.load_file(saved))
    text = json.loads(SafetensorsFile(saved).metadata[KEY])
    change(arrays, text)
    return {"arrays": arrays, "metadata": {KEY: json.dumps(text)}}


BROKEN: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "no v": (lambda a, t: a.pop("v"), "tensor 'v' is missing"),
    "short m": (lambda a, t: a.update(m=a["m"][:-1]), r"'m': shape \(1079\), expected \(1080\)"),
    "two-dimensional": (lambda a, t: a.update(m=a["m"][:, None]), r"tensor 'm': shape \(1080, 1\)"),
    "float64": (lambda a, t: a.update(params=a["params"].astype(float)), "F64, expected F32"),
    "int32": (lambda a, t: a.update(v=a["v"].view(np.int32)), "tensor 'v': I32, expected F32"),
    "nan": (lambda a, t: a["params"].__setitem__(5, np.nan), "'params' has numbers that are not"),
    "window": (lambda a, t: a.update(loss_outliers=np.zeros(5)), r"shape \(5\), expected \(131\)"),
    "version": (lambda a, t: t.update(version=2), "version = 2: expected 1"),
    "no step": (lambda a, t: t.pop("step"), "metadata: step = None: damaged"),
    "true step": (lambda a, t: t.update(step=True), "metadata: step = True: damaged"),
    "negative step": (lambda a, t: t.update(step=-1), "step = -1: expected a number ≥ 0"),
    "identity": (lambda a, t: t.update(identity=[]), r"metadata: identity = \[\]: damaged"),
    "shard": (lambda a, t: t["data"].update(shard=2), "shard = 2"),
    "sample": (lambda a, t: t["data"].update(sample=10**6), "sample = 1000000"),
    "no rng": (lambda a, t: a.pop("data.rng_words"), "data fields = 5: expected"),
    "order": (lambda a, t: a["data.shard_order"].__setitem__(0, 7), "data shard_order = 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_not_a_whole_checkpoint_is_refused(
    name: str, saved: Path, data: Path, tmp_path: Path
) -> None:
    """One line that says what is wrong; nothing of it reaches the trainer's arrays first."""
    change, message = BROKEN[name]
    write_safetensors(tmp_path / "c", **damaged(saved, change))
    it = trainer(data)
    before = it.model.params.flat.copy()
    with pytest.raises(PyLLM2Error, match=message):
        it.restore(CheckpointFile(tmp_path / "c").read(it.model.params.flat.size))
    np.testing.assert_array_equal(it.model.params.flat, before)
    assert it.step == 0


@pytest.mark.parametrize(
    ("metadata", "message"),
    [({}, "a safetensors file, but no training checkpoint"), ({KEY: "{"}, "metadata: not JSON"),
     ({KEY: "[" * 100_000}, "metadata: not JSON"), ({KEY: "[]"}, "not a JSON object")],
    ids=["foreign", "cut", "deep", "list"],
)  # fmt: skip
def test_foreign_files_are_refused(metadata: dict[str, str], message: str, tmp_path: Path) -> None:
    """Somebody else's model, or metadata that was edited."""
    write_safetensors(tmp_path / "c", {"w": np.zeros(3)}, metadata)
    with pytest.raises(FormatError, match=message):
        CheckpointFile(tmp_path / "c")


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(share: float, saved: Path) -> None:
    """Wherever it ends."""
    import tempfile

    whole = saved.read_bytes()
    with tempfile.NamedTemporaryFile() as file:
        file.write(whole[: int(share * len(whole))])
        file.flush()
        with pytest.raises(FormatError, match=r"a header needs 8|not a whole safetensors file"):
            CheckpointFile(file.name)


def test_trailing_bytes_are_refused(saved: Path, tmp_path: Path) -> None:
    """A file is what it says it is, to the last byte."""
    (tmp_path / "c").write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(FormatError, match="not a whole safetensors file"):
        CheckpointFile(tmp_path / "c")


# ---- the format ------------------------------------------------------------------------------

DTYPES = [np.float64, np.float32, np.int64, np.int32, np.uint32, np.uint64]
ARRAYS = st.dictionaries(
    st.text("abcxyz.é", min_size=1, max_size=5),
    st.builds(
        lambda dtype, shape: np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape),
        st.sampled_from(DTYPES),
        st.lists(st.integers(0, 4), min_size=1, max_size=3),
    ),
    max_size=6,
)


@given(arrays=ARRAYS, text=st.text(max_size=20))
def test_the_file_is_the_librarys_byte_for_byte(arrays: dict[str, Any], text: str) -> None:
    """So that any reader takes it."""
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        write_safetensors(file.name, arrays, {"k": text})
        assert Path(file.name).read_bytes() == safetensors.numpy.save(arrays, {"k": text})


def test_other_memory_layouts_are_written_in_order(tmp_path: Path) -> None:
    """Transposed, strided, big-endian: what is read is what the array says."""
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    arrays = {"f": np.asfortranarray(a), "t": a.T, "s": a[:, ::2], "b": a.astype(">f4")}
    write_safetensors(tmp_path / "c", arrays, {})
    file = SafetensorsFile(tmp_path / "c")
    for name, array in arrays.items():
        np.testing.assert_array_equal(file.read(name, np.float32, array.shape), array)
