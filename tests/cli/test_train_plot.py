"""`pyllm2 train`: the plot of the loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import in_process
from tests.support.toy_training import TRAIN, write_shards


def test_the_loss_is_plotted(tmp_path: Path) -> None:
    """The plot is loss.png in the folder, or the file of --plot."""
    pytest.importorskip("matplotlib")
    write_shards(tmp_path)
    assert in_process(TRAIN, tmp_path).code == 0
    assert (tmp_path / "out" / "loss.png").read_bytes().startswith(b"\x89PNG")
    argv = (*TRAIN, "--resume", "--plot", "curve.svg")
    assert in_process(argv, tmp_path).code == 0
    assert b"<svg" in (tmp_path / "curve.svg").read_bytes()
