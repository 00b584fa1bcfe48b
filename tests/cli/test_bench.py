"""`pyllm2 bench`: what it reports, not how fast anything is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyllm2 import bench
from pyllm2.bench import HEADERS, write_random
from pyllm2.cli import main
from pyllm2.gpt2.checkpoint import save_parameters
from pyllm2.gpt2.initial import descriptor, initial_parameters
from pyllm2.llama2.checkpoint import export


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bandwidth is measured on an array of 1 MiB, not 512."""
    monkeypatch.setattr(bench, "READ_BYTES", 2**20)
    bench._much_data.cache_clear()


def test_a_benchmark_reports_every_backend_and_its_samples(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """One row per backend, and as many samples in the JSON file as repeats."""
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
    """An int8 model has a dash in that column, and no line about float32 products."""
    pytest.importorskip("tabulate")
    write_random("260K", str(tmp_path / "v0.bin"))
    export(tmp_path / "v0.bin", tmp_path / "v2.bin", "v2")
    flags = ["--repeats", "1", "--prompt-tokens", "4", "--new-tokens", "3", "--backends", "numpy"]
    assert main(["bench", str(tmp_path / "v2.bin"), *flags]) == 0
    head, _, table = capsysbinary.readouterr().out.decode().partition("\n\n")
    row = [cell.strip() for cell in table.splitlines()[2].split("|")[1:-1]]
    assert row[HEADERS.index("of sgemm")] == "-"
    assert "matrix products" not in head


def test_both_families_race(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """A GPT-2 checkpoint gives the same table as a Llama-2."""
    pytest.importorskip("tabulate")
    config = descriptor("layers=2,heads=2,channels=8,vocab=60,context=16")
    save_parameters(tmp_path / "gpt2.bin", config, initial_parameters(config))
    flags = ["--repeats", "1", "--prompt-tokens", "4", "--new-tokens", "3", "--backends", "numpy"]
    assert main(["bench", str(tmp_path / "gpt2.bin"), *flags]) == 0
    printed = capsysbinary.readouterr().out
    assert b"matrix products alone" in printed
    assert b"| numpy " in printed
    assert main(["bench", str(tmp_path / "gpt2.bin"), *flags, "--against", "./run"]) == 2
    assert b"runs Llama-2 only" in capsysbinary.readouterr().err
