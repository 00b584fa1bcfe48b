"""`pyllm2 bench`: what it reports, not how fast anything is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyllm2.cli import main


def test_a_benchmark_reports_every_backend_and_its_samples(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """A row a backend, and as many samples as repeats in the file."""
    pytest.importorskip("tabulate")
    out = tmp_path / "bench.json"
    flags = ["--repeats", "2", "--prompt-tokens", "4", "--new-tokens", "3", "--json", str(out)]
    assert main(["bench", "--shape", "260K", "--backends", "numpy", *flags]) == 0
    assert b"| numpy " in capsysbinary.readouterr().out
    report = json.loads(out.read_text())
    (result,) = report["results"]
    for samples in (result["decode"], result["prefill"], report["read_bandwidth"]):
        assert len(samples["values"]) == 2
        assert min(samples["values"]) > 0
