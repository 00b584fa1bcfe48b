"""`pyllm2 bench`: what it reports, not how fast anything is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyllm2.bench import HEADERS, write_random
from pyllm2.cli import main
from pyllm2.export import export


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


def test_sgemm_is_no_limit_of_int8(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """A dash in that column, and no word of matrix products above the table."""
    pytest.importorskip("tabulate")
    write_random("260K", str(tmp_path / "v0.bin"))
    export(tmp_path / "v0.bin", tmp_path / "v2.bin", "v2")
    flags = ["--repeats", "1", "--prompt-tokens", "4", "--new-tokens", "3", "--backends", "numpy"]
    assert main(["bench", str(tmp_path / "v2.bin"), *flags]) == 0
    head, _, table = capsysbinary.readouterr().out.decode().partition("\n\n")
    row = [cell.strip() for cell in table.splitlines()[2].split("|")[1:-1]]
    assert row[HEADERS.index("of sgemm")] == "-"
    assert "matrix products" not in head
