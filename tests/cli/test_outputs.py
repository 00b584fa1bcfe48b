"""Outputs that are no plain files, for every command that writes one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyllm2 import bench
from tests.support.command import in_process
from tests.support.llama2_files import lay_out
from tests.support.toy_training import TRAIN, write_shards

BENCH = (
    "bench m.bin --backends numpy --repeats 1 --prompt-tokens 2 --new-tokens 2 --threads 1"
).split()
# Commands without their last argument, which is the output.
WRITERS = {
    "quantize": "quantize m.bin --group-size 4".split(),
    "export": "export m.bin --format v1".split(),
    "tokenizer export": "tokenizer export t.bin".split(),
    "tokenizer train": "tokenizer train text.txt --vocab-size 280 --out".split(),
    "bench json": [*BENCH, "--json"],
    "bench plot": [*BENCH, "--plot"],
    "train plot": [*TRAIN, "--plot"],
}
NEEDS = {"tokenizer train": "sentencepiece", "bench plot": "matplotlib", "train plot": "matplotlib"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bench, "READ_BYTES", 2**20)
    bench._much_data.cache_clear()
    lay_out(tmp_path)
    write_shards(tmp_path)
    (tmp_path / "text.txt").write_text("one two three four five six seven eight nine\n" * 20)
    return tmp_path


def test_the_size_of_a_redirected_output_is_told(folder: Path) -> None:
    """/proc/self/fd/N is a link whose file is replaced: it then names the old one."""
    with (folder / "out.bin").open("wb") as file:
        argv = ["quantize", "m.bin", f"/proc/self/fd/{file.fileno()}", "--group-size", "4"]
        outcome = in_process(argv, folder)
    assert outcome.code == 0, outcome.err
    size = (folder / "out.bin").stat().st_size
    assert f"groups of 4, {size} bytes\n".encode() in outcome.err


@pytest.fixture(params=WRITERS)
def argv(request: pytest.FixtureRequest) -> list[str]:
    """The command line of a writer that can run here."""
    for module in [NEEDS.get(request.param), "tabulate" if "bench" in request.param else None]:
        if module:
            pytest.importorskip(module)
    return WRITERS[request.param]


def test_a_link_stays_a_pipe_gets_the_bytes_and_the_rest_is_refused(
    folder: Path, argv: list[str]
) -> None:
    """What a link names is replaced; a folder is refused before any work, and so is nowhere."""
    (folder / "real").write_bytes(b"old")
    (folder / "link").symlink_to("real")
    outcome = in_process([*argv, "link", "--force"], folder)
    assert outcome.code == 0, outcome.err
    assert (folder / "link").is_symlink()
    assert (folder / "real").stat().st_size > 50

    if "train" not in argv[0]:  # a second run into the same folder would be refused
        os.mkfifo(folder / "pipe")
        reader = os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        outcome = in_process([*argv, "pipe"], folder)
        assert outcome.code == 0, outcome.err
        assert (folder / "pipe").is_fifo()
        assert len(os.read(reader, 10**6)) > 50
        os.close(reader)

    (folder / "occupied").mkdir()
    for target, reason in (
        ("occupied", "is a folder, expected a file to write"),
        ("none/x", "no such file or directory"),
    ):
        outcome = in_process([*argv, target], folder)
        assert outcome.code == 1
        assert outcome.out == b""
        assert outcome.err.decode() == f"pyllm2: error: {target}: {reason}\n"


@pytest.mark.parametrize(
    "argv",
    [
        "quantize m.bin ./m.bin",
        "export m.bin link --format v1",
        "tokenizer export t.bin ./t.bin",
        "tokenizer train m.bin --out link",
        "bench m.bin --json link",
    ],
)
def test_an_input_is_no_output(folder: Path, argv: str) -> None:
    """Under whatever name."""
    pytest.importorskip("tabulate")
    (folder / "link").symlink_to("m.bin")
    before = (folder / "m.bin").read_bytes()
    outcome = in_process(argv.split(), folder)
    target = argv.split()[-1] if "--format" not in argv else "link"
    assert outcome.code == 2
    expected = f"pyllm2: error: {target}: the output would overwrite the input\n"
    assert outcome.err.decode() == expected
    assert (folder / "m.bin").read_bytes() == before


def test_a_file_of_an_input_folder_is_no_output(folder: Path) -> None:
    """The weights would be gone; another file in the folder is fine, twice too."""
    assert in_process("export m.bin hf --format hf".split(), folder).code == 0
    before = (folder / "hf" / "model.safetensors").read_bytes()
    for command in ("export --format gguf", "quantize"):
        name, *flags = command.split()
        outcome = in_process([name, "hf", "hf/model.safetensors", *flags], folder)
        assert outcome.code == 2
        assert b"hf/model.safetensors: the output would overwrite the input\n" in outcome.err
        for _ in range(2):
            argv = [name, "hf", f"hf/{name}.new", *flags, "--force"]
            assert in_process(argv, folder).code == 0
    assert (folder / "hf" / "model.safetensors").read_bytes() == before


def test_a_text_that_is_too_short_is_refused_before_quantising(folder: Path) -> None:
    (folder / "empty.txt").write_bytes(b"")
    for flags, code in (("--tokenizer t.bin", 2), ("--tokenizer nosuch.bin", 1)):
        outcome = in_process(f"quantize m.bin new.bin --text empty.txt {flags}".split(), folder)
        assert (outcome.code, outcome.err.count(b"\n")) == (code, 1)
        assert not (folder / "new.bin").exists()


def test_another_part_of_the_input_is_no_output(folder: Path) -> None:
    """A GGUF in two files, named by its first."""
    parts = [folder / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    for part in parts:
        part.write_bytes(b"GGUF")
    outcome = in_process(["export", parts[0].name, parts[1].name, "--format", "gguf"], folder)
    assert outcome.code == 2
    assert parts[1].read_bytes() == b"GGUF"


def test_an_image_format_is_checked_before_training(folder: Path) -> None:
    """And nothing is written."""
    pytest.importorskip("matplotlib")
    outcome = in_process([*TRAIN, "--plot", "loss.txt"], folder)
    assert outcome.code == 1
    assert b"error: loss.txt: image format 'txt' is not supported" in outcome.err
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    "name",
    ["model.bin", "main.log", ".lock", ".pid", "step_00000005.safetensors"],
)
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
def test_a_run_folder_has_plain_files_only(folder: Path, name: str, kind: str) -> None:
    """Anything else of our names is refused by name before training; links are not followed."""
    victim = folder / "victim"
    (folder / "out").mkdir()
    path = folder / "out" / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(victim)
        if kind == "link":
            victim.write_bytes(b"precious")
    resume = ["--resume"] if name.startswith("step") else []
    outcome = in_process([*TRAIN, *resume], folder)
    assert outcome.code == 1, outcome.err
    assert f"pyllm2: error: out/{name}: is ".encode() in outcome.err
    assert b"| loss" not in outcome.err
    if kind == "link":
        assert victim.read_bytes() == b"precious"
    assert kind != "dangling" or not victim.exists()
