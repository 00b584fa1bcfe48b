"""Bits per byte of training runs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from pyllm2.formats.llmc_tokens import read_shard, write_shard
from pyllm2.tokenizers import load_tokenizer
from pyllm2.training.bits import bits_per_byte, bytes_per_token
from pyllm2.training.log import read_log, validation_line
from tests.support import llama2_files
from tests.support.toy_training import make_trainer


def test_bits_are_nats_over_the_bytes_of_a_token() -> None:
    """ln 2 nats for a token of 2 bytes are half a bit per byte."""
    assert math.isclose(bits_per_byte(math.log(2), 2.0), 0.5, rel_tol=1e-15)


def test_a_boundary_of_documents_counts_as_its_blank_line(tmp_path: Path) -> None:
    """SentencePiece drops the blank line, and its BOS says it; a byte is a byte."""
    (tmp_path / "t.bin").write_bytes(llama2_files.vocabulary())
    pieces = load_tokenizer(tmp_path / "t.bin")
    documents = [b"a cab\n\n", b"hello\n\n"]
    for tokenizer, expected in ((pieces, len(b"".join(documents))), (load_tokenizer("bytes"), 14)):
        ids = [i for document in documents for i in tokenizer.encode_document(document)]
        write_shard(tmp_path / "x.bin", np.array(ids))
        found = bytes_per_token(tokenizer, read_shard(tmp_path / "x.bin"))
        assert math.isclose(found * len(ids), expected, rel_tol=1e-12)


def test_the_log_has_them_and_is_read_as_before(data: Path, tmp_path: Path) -> None:
    """They follow the loss; without a tokenizer there are none."""
    assert validation_line(3, 2.0, 1.5) == "s:3 tel:2.0000 bpb:1.5000"
    (tmp_path / "log").write_text(validation_line(3, 2.0, 1.5) + "\n")
    assert read_log(tmp_path / "log")["tel"] == {3: 2.0}
    trainer = make_trainer(data)
    lines: list[str] = []
    trainer.folder.log.add = lines.append  # type: ignore[method-assign]
    for size in (None, 4.0):
        trainer.bytes_per_token = size
        trainer.validate()
    assert "bpb" not in lines[0]
    assert lines[1].startswith(lines[0] + " bpb:")
