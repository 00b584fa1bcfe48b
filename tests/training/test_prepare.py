"""Texts to shards: every document, in order, after an end-of-text token; all files or none."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllm2.errors import FileError, UsageError
from pyllm2.formats.tokens import read_shard
from pyllm2.gpt2.tokenizer import byte_tokenizer, load_tokenizer
from pyllm2.training.prepare import documents_of, prepare

writes_files = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.lists(st.lists(st.sampled_from(b"ab\n"), max_size=25).map(bytes), min_size=1, max_size=3)


def expected_ids(texts: list[bytes]) -> list[int]:
    """By the rule: split at blank lines, end-of-text first, the blank line back but at the end."""
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
    """The first tokens validate, the rest train, in files of at most so many; nothing is lost."""
    folder = tmp_path_factory.mktemp("prepare")
    paths = [folder / f"{i}.txt" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text)
    ids = expected_ids(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyllm2.training.prepare._BLOCK", block)
        if val >= len(ids):
            with pytest.raises(UsageError, match=f"^{len(ids)} tokens in all: with {val} for "):
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


def test_a_document_may_span_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blank lines are found wherever a text is cut for reading."""
    (tmp_path / "t").write_bytes(b"a\n\n\nb\n\n\n\n")
    for block in range(1, 12):
        monkeypatch.setattr("pyllm2.training.prepare._BLOCK", block)
        assert list(documents_of(tmp_path / "t")) == [b"a\n\n", b"\nb\n\n", b"\n\n", b""]


class Wide:
    """A tokenizer of more ids than 16 bits hold."""

    vocab_size, end_of_text = 2**16 + 1, 2**16

    def encode_document(self, text: bytes) -> list[int]:
        return [self.end_of_text] + [7] * len(text)

    def write_tokenizer(self, path: Path) -> None:
        path.write_bytes(b"")


def test_ids_take_four_bytes_where_two_are_too_few(tmp_path: Path) -> None:
    """And 2¹⁶ of them still fit into two."""
    (tmp_path / "t").write_bytes(b"ab")
    wide = Wide()
    prepare([tmp_path / "t"], wide, tmp_path / "wide", 0)
    assert read_shard(tmp_path / "wide/train.bin").dtype.itemsize == 4
    assert ids_of(tmp_path / "wide/train.bin") == [2**16, 7, 7]
    wide.vocab_size, wide.end_of_text = 2**16, 2**16 - 1
    prepare([tmp_path / "t"], wide, tmp_path / "narrow", 0)
    assert read_shard(tmp_path / "narrow/train.bin").dtype.itemsize == 2


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    """Whatever ends it, however much is written."""
    (tmp_path / "t").write_bytes(b"a\n\nb\n\nc")

    def interrupt(_: int) -> None:
        if len(list(tmp_path.rglob("train_*.bin"))) >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([tmp_path / "t"], byte_tokenizer(), tmp_path / "out", 0, 2, interrupt)
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_an_empty_folder_is_as_good_as_none(tmp_path: Path) -> None:
    """Anything else of that name is left alone, and no text is encoded for it."""
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


def test_tiny_shakespeare_is_the_recorded_one(shared: Path, tmp_path: Path) -> None:
    """Both shards byte for byte, by their hashes."""
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
