"""Token shards from texts: documents, sizes of files, all files or none, llm.c's recording."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllm2.errors import FileError, UsageError
from pyllm2.formats.llmc_tokens import read_shard
from pyllm2.tokenizers import load_tokenizer
from pyllm2.tokenizers.byte_level import byte_tokenizer
from pyllm2.training.prepare import prepare

writes_files = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
text = st.lists(st.sampled_from(b"ab\n"), max_size=25).map(bytes).filter(bytes.strip)
texts = st.lists(text, min_size=1, max_size=3)


def expected_ids(texts: list[bytes]) -> list[int]:
    """A second definition: end-of-text and then each document with the blank line that ends it."""
    ids = []
    for text in texts:
        *whole, last = text.split(b"\n\n")
        for document in [*(part + b"\n\n" for part in whole), last]:
            ids += [256, *document]
    return ids


def ids_of(*paths: Path) -> list[int]:
    shards = [read_shard(path) for path in paths]
    return [i for shard in shards for i in shard.read(0, shard.count).tolist()]


@writes_files
@given(texts, st.integers(0, 30), st.integers(1, 30), st.integers(1, 30))
def test_shards_hold_every_document(
    tmp_path_factory: pytest.TempPathFactory, texts: list[bytes], val: int, most: int, block: int
) -> None:
    """val.bin has the first tokens, the training shards the rest, `most` tokens per shard."""
    folder = tmp_path_factory.mktemp("prepare")
    paths = [folder / f"{i}.txt" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text)
    ids = expected_ids(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyllm2.formats.text._BLOCK", block)
        if val >= len(ids):
            with pytest.raises(UsageError, match=f"^{len(ids)} tokens in total, {val} of them "):
                prepare(paths, byte_tokenizer(), folder / "out", val, most)
            assert sorted(folder.iterdir()) == paths
            return
        seen: list[int] = []
        done = prepare(paths, byte_tokenizer(), folder / "out", val, most, seen.append)
    out = folder / "out"
    assert sorted(p.name for p in out.iterdir()) == sorted(done.files)
    trains = sorted(out.glob("train*.bin"))
    assert (ids_of(out / "val.bin") if val else []) == ids[:val]
    assert ids_of(*trains) == ids[val:]
    sizes = [read_shard(path).count for path in trains]
    assert all(size == most for size in sizes[:-1])
    assert 0 < sizes[-1] <= most
    names = [f"train_{i:06d}.bin" for i in range(len(sizes))]
    assert [p.name for p in trains] == (names if len(names) > 1 else ["train.bin"])
    assert (done.val_tokens, done.train_tokens) == (val, len(ids) - val)
    assert done.documents == ids.count(256) == len(seen)
    assert sum(seen) == sum(map(len, texts))
    assert load_tokenizer(out / "tokenizer.bin").pieces == byte_tokenizer().pieces


class Wide:
    """A tokenizer with 2¹⁶ + 1 ids."""

    vocab_size, end_of_text = 2**16 + 1, 2**16

    def encode_document(self, text: bytes) -> list[int]:
        return [self.end_of_text] + [7] * len(text)

    def write_tokenizer(self, path: Path) -> None:
        path.write_bytes(b"")


def test_ids_take_two_bytes_or_four(tmp_path: Path) -> None:
    """A vocabulary of 2¹⁶ ids takes 2 bytes per id, a larger one 4."""
    (tmp_path / "t").write_bytes(b"ab")
    wide = Wide()
    prepare([tmp_path / "t"], wide, tmp_path / "wide", 0)
    assert read_shard(tmp_path / "wide/train.bin").dtype.itemsize == 4
    assert ids_of(tmp_path / "wide/train.bin") == [2**16, 7, 7]
    wide.vocab_size, wide.end_of_text = 2**16, 2**16 - 1
    prepare([tmp_path / "t"], wide, tmp_path / "narrow", 0)
    assert read_shard(tmp_path / "narrow/train.bin").dtype.itemsize == 2


@pytest.mark.parametrize(
    ("val", "most"), [(-1, 5), (2**31, 5), (0, 0), (0, -1), (0, 2**31), (-1, 0)]
)
def test_a_shard_holds_at_least_one_token_and_at_most_what_its_header_can_say(
    val: int, most: int, tmp_path: Path
) -> None:
    """Either number outside is refused before anything is written."""
    (tmp_path / "t").write_bytes(b"ab\n\ncd")
    with pytest.raises(UsageError, match=r"^a shard has 1 to 2147483647 tokens$"):
        prepare([tmp_path / "t"], byte_tokenizer(), tmp_path / "out", val, most)
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    """After an interrupt, neither the new folder nor a temporary one is left."""
    (tmp_path / "t").write_bytes(b"a\n\nb\n\nc")

    def interrupt(_: int) -> None:
        if len(list(tmp_path.rglob("train_*.bin"))) >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([tmp_path / "t"], byte_tokenizer(), tmp_path / "out", 0, 2, interrupt)
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_an_existing_folder_must_be_empty(tmp_path: Path) -> None:
    """Any other `out` is refused before a text is encoded, and left as it is."""
    (tmp_path / "t").write_bytes(b"ab")
    (tmp_path / "out").mkdir()
    prepare([tmp_path / "t"], byte_tokenizer(), tmp_path / "out", 0)
    before = {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert {p.name for p in before} == {"train.bin", "tokenizer.bin"}

    def never(_: int) -> Any:
        raise AssertionError("a text was encoded")

    for out in ("out", "t", "no/out"):
        with pytest.raises(FileError):
            prepare([tmp_path / "t"], byte_tokenizer(), tmp_path / out, 0, 9, never)
    assert {p: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_a_mount_point_is_filled_from_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that cannot be replaced, as the topmost one of a file system, or a link to one."""
    (tmp_path / "t").write_bytes(b"ab\n\ncd")
    (tmp_path / "mount" / "lost+found").mkdir(parents=True)
    (tmp_path / "link").symlink_to("mount")
    rename, inside = os.rename, str(tmp_path / "link")

    def within(source: Any, target: Any) -> None:
        if os.path.isdir(target) or not os.fspath(source).startswith(inside + "/"):
            raise OSError(errno.EBUSY, "device or resource busy")
        rename(source, target)

    monkeypatch.setattr(os, "rename", within)
    done = prepare([tmp_path / "t"], byte_tokenizer(), tmp_path / "link", 1)
    assert {p.name for p in (tmp_path / "mount").iterdir()} == {*done.files, "lost+found"}


@pytest.mark.parametrize("bad", [1, 2, 3])
def test_files_are_moved_together_or_not_at_all(
    bad: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If one of them cannot be moved into an existing folder, it is empty again."""
    (tmp_path / "t").write_bytes(b"ab\n\ncd")
    (tmp_path / "out").mkdir()
    rename, calls = os.rename, [0]

    def failing(source: Any, target: Any) -> None:
        calls[0] += 1
        if calls[0] == bad:
            raise OSError(errno.EIO, "input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(FileError, match="input/output error"):
        prepare([tmp_path / "t"], byte_tokenizer(), tmp_path / "out", 1)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["out", "t"]


def test_tiny_shakespeare_equals_the_recorded_shards(shared: Path, tmp_path: Path) -> None:
    """Both shards have the SHA-256 of llm.c's."""
    pytest.importorskip("tiktoken")
    tokenizer = load_tokenizer(shared / "data/gpt2.tiktoken")
    text = shared / "data/tinyshakespeare.txt"
    done = prepare([text], tokenizer, tmp_path / "out", 32768)
    recorded = json.loads((shared / "golden/llmc/bpe/tinyshakespeare_tokens.json").read_text())
    assert done.documents == recorded["sections"]
    assert done.train_tokens == recorded["train_tokens"]
    for split in ("train", "val"):
        data = (tmp_path / "out" / f"{split}.bin").read_bytes()
        assert hashlib.sha256(data).hexdigest() == recorded[f"{split}_file"]["sha256"]
    with np.load(shared / "golden/llmc/bpe/tinyshakespeare_first4096.npz") as first:
        shard = read_shard(tmp_path / "out/val.bin")
        np.testing.assert_array_equal(shard.read(0, 4096), first["val_first4096"])
