"""Checkpoints: exact resumption, the run folder, refusal of damaged files, the file format."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pyllm2.errors import FileError, FormatError, PyLLM2Error
from pyllm2.formats.safetensors_file import SafetensorsFile, write_safetensors
from pyllm2.training.checkpoint import KEY, CheckpointFile, differences
from pyllm2.training.folder import checkpoints, open_folder
from pyllm2.training.recipe import Plan
from tests.support.tested import BACKENDS
from tests.support.toy_training import PLAN, Record, make_trainer, trainer_in
from tests.training.conftest import RequireBackend


def stop_after(trainer: Any, record: Record, steps: int) -> None:
    """Make a trainer stop after this number of updates."""
    trainer.stopped = lambda: len(record.updates) >= steps


def uninterrupted(out: Path, data: Path, **options: Any) -> bytes:
    """The last checkpoint of a run without interruption."""
    with ExitStack() as stack:
        trainer_in(stack, out, data, **options).run()
    return Path(checkpoints(str(out))[-1][1]).read_bytes()


def interrupted(out: Path, data: Path, stops: list[int], **options: Any) -> bytes:
    """The last checkpoint of a run that is stopped and resumed after each number of steps."""
    for i, steps in enumerate([*stops, 10**6]):
        with ExitStack() as stack:
            record = Record()
            trainer = trainer_in(stack, out, data, resume=i > 0, report=record, **options)
            if i > 0:
                file = CheckpointFile(trainer.folder.newest())
                file.require_same_run(trainer.identity, other_engine=False)
                trainer.restore(file.read(trainer.model.params.flat.size))
            stop_after(trainer, record, steps)
            trainer.run()
    return Path(checkpoints(str(out))[-1][1]).read_bytes()


@pytest.mark.parametrize("stops", [[1], [4], [5, 1, 3], [11]], ids=str)
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_an_interrupted_run_ends_with_the_same_bytes(
    stops: list[int], schedule: str, data: Path, tmp_path: Path
) -> None:
    """A checkpoint has all that the next step depends on, and no time stamps.

    With 16 tokens per update and 36 samples per epoch, 40 updates cross epochs and shards.
    """
    options: dict[str, Any] = {"steps": 40, "schedule": schedule}
    whole = uninterrupted(tmp_path / "whole", data, **options)
    assert interrupted(tmp_path / "parts", data, stops, **options) == whole


@pytest.mark.parametrize("backend", BACKENDS)
def test_resuming_is_exact_on_every_backend(
    backend: str, data: Path, tmp_path: Path, require_backend: RequireBackend
) -> None:
    """On one thread, 12 steps give the same bytes as 5 steps and then 7."""
    require_backend(backend)
    whole = uninterrupted(tmp_path / "whole", data, backend=backend)
    assert interrupted(tmp_path / "parts", data, [5], backend=backend) == whole


def test_resuming_restores_the_outlier_detectors(data: Path, tmp_path: Path) -> None:
    """Interrupted after the first 128 steps, a run skips the same updates."""
    options: dict[str, Any] = {"steps": 140, "skip_norm_z": 0.1, "total_batch": 8}
    record = Record()
    whole = uninterrupted(tmp_path / "whole", data, report=record, **options)
    assert any(update.skipped for update in record.updates)
    assert interrupted(tmp_path / "parts", data, [131], **options) == whole


def test_a_run_with_a_constant_rate_can_be_extended(data: Path, tmp_path: Path) -> None:
    """A run of 4 steps resumed up to 9 equals a run of 9 steps."""
    whole = uninterrupted(tmp_path / "whole", data, steps=9)
    uninterrupted(tmp_path / "parts", data, steps=4)
    assert resumed(tmp_path / "parts", data, steps=9) == whole


def resumed(out: Path, data: Path, **options: Any) -> bytes:
    """The last checkpoint of a run that is resumed in `out`."""
    with ExitStack() as stack:
        trainer = trainer_in(stack, out, data, resume=True, **options)
        file = CheckpointFile(trainer.folder.newest())
        file.require_same_run(json.loads(json.dumps(trainer.identity)), other_engine=False)
        trainer.restore(file.read(trainer.model.params.flat.size))
        trainer.run()
    return Path(checkpoints(str(out))[-1][1]).read_bytes()


def test_only_the_newest_checkpoints_are_kept(data: Path, tmp_path: Path) -> None:
    """The newest `keep` checkpoints stay, and so do files of other names."""
    (tmp_path / "step_notes.safetensors").write_text("mine")
    with ExitStack() as stack:
        trainer = trainer_in(stack, tmp_path, data, steps=11)
        trainer.run()
        assert trainer.folder.newest() == str(tmp_path / "step_00000011.safetensors")
    assert [step for step, _ in checkpoints(str(tmp_path))] == [8, 11]
    assert (tmp_path / "step_notes.safetensors").read_text() == "mine"


def test_a_failed_write_deletes_no_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older checkpoint is deleted only once the newer one is written."""
    with ExitStack() as stack:
        trainer = trainer_in(stack, tmp_path, data)
        trainer.plan = PLAN
        trainer.save()
        trainer.update()
        trainer.save()
        before = checkpoints(str(tmp_path))
        trainer.update()

        def full(*arguments: Any) -> None:
            raise FileError("step", "no space left on device")

        monkeypatch.setattr("pyllm2.training.checkpoint.write_safetensors", full)
        with pytest.raises(FileError, match="no space left"):
            trainer.save()
    assert checkpoints(str(tmp_path)) == before


def test_a_full_disk_keeps_the_previous_checkpoint(data: Path, tmp_path: Path) -> None:
    """With files limited to 4 KiB, a save fails, leaves no temporary file, and the run resumes."""
    record = Record()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ExitStack() as stack:
        trainer = trainer_in(stack, tmp_path, data, report=record)
        stop_after(trainer, record, 5)
        trainer.run()
        before = sorted(p.name for p in tmp_path.iterdir())
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            trainer.step += 1
            with pytest.raises(FileError, match=r"step_00000006\.safetensors: file too large"):
                trainer.save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert resumed(tmp_path, data) == uninterrupted(tmp_path / "whole", data)


def test_temporary_files_of_a_killed_run_are_removed(data: Path, tmp_path: Path) -> None:
    """The next start removes files named `.pyllm2-*.tmp` and no others."""
    for name in (".pyllm2-abc.tmp", ".other.tmp", "pyllm2-abc.tmp"):
        (tmp_path / name).write_text("x")
    with open_folder(tmp_path, resume=False):
        names = {p.name for p in tmp_path.iterdir()}
    assert names == {".lock", ".pid", ".other.tmp", "main.log", "pyllm2-abc.tmp"}


# ---- refusals --------------------------------------------------------------------------------


def test_a_second_run_in_a_folder_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    """A folder is locked while a run is active, and free afterwards."""
    import os

    with (
        open_folder(tmp_path, resume=False),
        pytest.raises(FileError, match=f"process {os.getpid()} is training into it"),
        open_folder(tmp_path, resume=False),
    ):
        pass
    with open_folder(tmp_path, resume=False):
        pass


def test_a_run_is_never_overwritten_and_resuming_needs_a_checkpoint(
    data: Path, tmp_path: Path
) -> None:
    """Both refusals come before anything is written."""
    with pytest.raises(FileError, match="has no checkpoint to resume from"):
        open_folder(tmp_path, resume=True).__enter__()
    uninterrupted(tmp_path, data)
    log = (tmp_path / "main.log").read_bytes()
    with pytest.raises(FileError, match="already contains a run: --resume continues it"):
        open_folder(tmp_path, resume=False).__enter__()
    assert (tmp_path / "main.log").read_bytes() == log


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    """A file cannot be the run folder, nor contain it."""
    (tmp_path / "f").write_text("")
    for path, reason in (("f", "is a file, expected a folder"), ("f/g", "not a directory")):
        with pytest.raises(FileError, match=reason):
            open_folder(tmp_path / path, resume=False).__enter__()


@pytest.fixture(scope="module")
def saved(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid checkpoint, read-only."""
    out = tmp_path_factory.mktemp("saved")
    uninterrupted(out, data)
    return Path(checkpoints(str(out))[-1][1])


def test_resuming_another_run_is_refused(data: Path, saved: Path) -> None:
    """The message lists every difference; `--other-engine` accepts no other model or recipe."""
    identity = make_trainer(data, batch=1, seed=7).identity
    identity["model"]["num_layers"] = 2
    expected = (
        r"of another run: model\.num_layers = 2 \(saved: 1\), recipe\.batch = 1 \(saved: 2\), "
        r"recipe\.seed = 7 \(saved: 42\)$"
    )
    for other_engine in (False, True):
        with pytest.raises(FileError, match=expected):
            CheckpointFile(saved).require_same_run(identity, other_engine)


def test_resuming_on_another_engine_needs_a_flag(data: Path, saved: Path) -> None:
    """Another backend or number of threads may change the last bits, as the message says."""
    identity = make_trainer(data).identity
    identity["engine"] = {"backend": "other", "threads": 3}
    file = CheckpointFile(saved)
    file.require_same_run(identity, other_engine=True)
    expected = (
        r'engine\.backend = "other" \(saved: "numpy"\), engine\.threads = 3 \(saved: null\); '
        r"--other-engine resumes, but the last bits may differ$"
    )
    with pytest.raises(FileError, match=expected):
        file.require_same_run(identity, other_engine=False)


def test_differences_descend_into_lists() -> None:
    """A changed list element is named by its index; lists of different length are shown whole."""
    a = {"shards": [{"tokens": 5}, {"tokens": 6}], "x": 1}
    b = {"shards": [{"tokens": 5}, {"tokens": 7}], "y": 2}
    assert differences(a, b) == [
        "shards[1].tokens = 7 (saved: 6)",
        "x = null (saved: 1)",
        "y = 2 (saved: null)",
    ]
    assert differences([1], [1, 2], "l") == ["l = [1, 2] (saved: [1])"]
    for a_mapping in ({}, {"x": 1}):
        expected = [f"m = 3 (saved: {json.dumps(a_mapping)})"]
        assert differences({"m": a_mapping}, {"m": 3}) == expected
        assert len(differences({"m": 3}, {"m": a_mapping})) == 1
    assert differences(a, a) == []


def damaged(
    saved: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]
) -> dict[str, Any]:
    """Arguments of `write_safetensors`: the saved arrays and metadata after `change`."""
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
    "text": (lambda a, t: t["data"].update(shard="x"), "metadata: shard = 'x': damaged"),
    "real": (lambda a, t: t["data"].update(sample=1.5), "metadata: sample = 1.5: damaged"),
    "huge": (lambda a, t: t["data"].update(sample=10**400), "metadata: sample = 10+: damaged"),
    "far step": (lambda a, t: t.update(step=10**400), "metadata: step = 10+: damaged"),
    "long step": (lambda a, t: t.update(step="9" * 5000), "metadata: step = '9{79}: damaged"),
    "negative shard": (lambda a, t: t["data"].update(shard=-1), "shard = -1"),
    "null position": (lambda a, t: t["data"].update(rng_position=None), "rng_position = None"),
    "number as array": (
        lambda a, t: (t["data"].pop("shard"), a.update({"data.shard": np.zeros(3)})),
        "data shard = array.*: expected a whole number",
    ),
    "array as number": (
        lambda a, t: (t["data"].update(rng_words=7), a.pop("data.rng_words")),
        r"data rng_position = \d+: of 1 words",
    ),
    "order of reals": (
        lambda a, t: a.update({"data.shard_order": np.array([0.0, 1.0])}),
        "data shard_order = dtype.*: expected whole numbers",
    ),
    "count": (lambda a, t: a["loss_outliers"].__setitem__(0, -1.5), "'loss_outliers': -1.5 values"),
    "order": (lambda a, t: a["data.shard_order"].__setitem__(0, 7), "data shard_order = 2"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_checkpoint_is_refused(
    name: str, saved: Path, data: Path, tmp_path: Path
) -> None:
    """The message names the damage, and the trainer keeps its parameters and step."""
    change, message = BROKEN[name]
    write_safetensors(tmp_path / "c", **damaged(saved, change))
    trainer = make_trainer(data)
    before = trainer.model.params.flat.copy()
    with pytest.raises(PyLLM2Error, match=message):
        trainer.restore(CheckpointFile(tmp_path / "c").read(trainer.model.params.flat.size))
    np.testing.assert_array_equal(trainer.model.params.flat, before)
    assert trainer.step == 0


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
ANY_ARRAY = arrays(
    st.sampled_from([np.uint64, np.int64, np.float64, np.float32, np.uint32, np.int32]),
    array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3),
)


@given(value=ANY_JSON, draw=st.data())
def test_any_number_of_a_checkpoint_may_be_anything(
    value: Any, draw: st.DataObject, saved: Path, data: Path
) -> None:
    """Metadata and arrays of any kind are refused with one line, or restored."""
    import tempfile

    def change(a: dict[str, Any], t: dict[str, Any]) -> None:
        where = draw.draw(st.sampled_from([*t, *t["data"], *a]))
        if where in a:
            a[where] = draw.draw(ANY_ARRAY)
        else:
            (t if where in t else t["data"])[where] = value

    trainer = make_trainer(data)
    with tempfile.NamedTemporaryFile() as file:
        write_safetensors(file.name, **damaged(saved, change))
        error = None
        try:
            found = CheckpointFile(file.name)
            found.require_same_run(trainer.identity, other_engine=False)
            trainer.restore(found.read(trainer.model.params.flat.size))
        except PyLLM2Error as refusal:
            error = str(refusal)
    assert error is None or (len(error) < 2000 and error.isprintable())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "a safetensors file, but not a training checkpoint"),
        ({KEY: "{"}, "metadata: not JSON"),
        ({KEY: "[" * 100_000}, "metadata: not JSON"),
        ({KEY: "[]"}, "not a JSON object"),
    ],
    ids=["foreign", "cut", "deep", "list"],
)
def test_foreign_files_are_refused(metadata: dict[str, str], message: str, tmp_path: Path) -> None:
    """A safetensors file without the metadata of a checkpoint, or with invalid JSON in it."""
    write_safetensors(tmp_path / "c", {"w": np.zeros(3)}, metadata)
    with pytest.raises(FormatError, match=message):
        CheckpointFile(tmp_path / "c")


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(share: float, saved: Path) -> None:
    """A file cut at any byte is refused."""
    import tempfile

    whole = saved.read_bytes()
    with tempfile.NamedTemporaryFile() as file:
        file.write(whole[: int(share * len(whole))])
        file.flush()
        with pytest.raises(FormatError, match=r"a header needs 8|not a whole safetensors file"):
            CheckpointFile(file.name)


def test_trailing_bytes_are_refused(saved: Path, tmp_path: Path) -> None:
    """One byte after the last array is refused."""
    (tmp_path / "c").write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(FormatError, match="not a whole safetensors file"):
        CheckpointFile(tmp_path / "c")


# ---- file format -----------------------------------------------------------------------------

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
def test_files_equal_those_of_the_safetensors_library(arrays: dict[str, Any], text: str) -> None:
    """`write_safetensors` writes the same bytes as the safetensors library."""
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        write_safetensors(file.name, arrays, {"k": text})
        assert Path(file.name).read_bytes() == safetensors.numpy.save(arrays, {"k": text})


def test_any_memory_layout_is_written_in_index_order(tmp_path: Path) -> None:
    """Transposed, strided and big-endian arrays are read back with equal elements."""
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    arrays = {"f": np.asfortranarray(a), "t": a.T, "s": a[:, ::2], "b": a.astype(">f4")}
    write_safetensors(tmp_path / "c", arrays, {})
    file = SafetensorsFile(tmp_path / "c")
    for name, array in arrays.items():
        np.testing.assert_array_equal(file.read(name, np.float32, array.shape), array)


# ---- errors during a run, and time between checkpoints --------------------------------------


@pytest.mark.parametrize("read", [1, 2, 6, 9, 23])
def test_a_read_error_loses_no_finished_step(tmp_path: Path, data: Path, read: int) -> None:
    """A failed read saves the last finished step; the resumed run ends with the same weights."""
    plan = Plan(validate_every=0, save_every=0)
    whole = make_trainer(data, plan=plan)
    whole.run()
    with ExitStack() as stack:
        trainer = trainer_in(stack, tmp_path / "out", data, plan=plan)
        read_batch, reads = trainer.train_data.next_batch, 0

        def failing() -> Any:
            nonlocal reads
            reads += 1
            if reads == read:
                raise OSError(5, "Input/output error")
            return read_batch()

        trainer.train_data.next_batch = failing  # type: ignore[method-assign]
        with pytest.raises(OSError, match="Input/output error"):
            trainer.run()
    finished = (read - 1) // trainer.recipe.micro_steps
    found = checkpoints(str(tmp_path / "out"))
    assert [step for step, _ in found] == [finished] * (finished > 0)
    if finished:
        with ExitStack() as stack:
            again = trainer_in(stack, tmp_path / "out", data, resume=True, plan=plan)
            again.restore(CheckpointFile(found[0][1]).read(again.model.params.flat.size))
            assert again.run()
        np.testing.assert_array_equal(again.model.params.flat, whole.model.params.flat)
        np.testing.assert_array_equal(again.v, whole.v)


def test_an_incomplete_update_is_not_saved(tmp_path: Path, data: Path) -> None:
    """After an error within an update the parameters belong to no step and are not saved."""
    with ExitStack() as stack:
        trainer = trainer_in(
            stack, tmp_path / "out", data, plan=Plan(validate_every=0, save_every=0)
        )
        trainer.update()

        def broken(*_: Any) -> None:
            raise RuntimeError("half way")

        trainer.optimizer = SimpleNamespace(**{**vars(trainer.optimizer), "adamw_update": broken})
        with pytest.raises(RuntimeError, match="half way"):
            trainer.run()
    assert not checkpoints(str(tmp_path / "out"))


def test_by_default_a_checkpoint_is_due_by_time(data: Path) -> None:
    """Checkpoints are written every ten minutes and after the last step."""
    record = Record()
    trainer = make_trainer(data, plan=Plan(validate_every=0), report=record, steps=9)
    trainer.clock, trainer.saved_at = lambda: 240.0 * trainer.step, 0.0  # four minutes per update
    assert trainer.run()
    assert record.saves == [3, 6, 9]
