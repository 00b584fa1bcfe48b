"""One rule for every command that writes: no output replaces anything, but with `--force`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyllm2 import bench
from pyllm2.cli.outputs import EXISTS, check_folder, output
from pyllm2.errors import UsageError
from pyllm2.testing import tables
from tests.cli.test_help import COMMANDS
from tests.support.command import in_process
from tests.support.llama2_files import lay_out
from tests.support.toy_training import TRAIN, write_shards

pytestmark = pytest.mark.usefixtures("no_plots")
BENCH = "--backends numpy --repeats 1 --prompt-tokens 2 --new-tokens 2 --threads 1"
PROMPT = "m.bin --tokenizer t.bin --prompt ab --backend numpy"
HELLASWAG = '{"ctx": "a b", "label": 1, "endings": ["a", "b", "c", "d"]}\n'
# All outputs, by command and argument: the command line with OUT, and what the command may need.
FILES: dict[tuple[str, str], tuple[str, str]] = {
    ("bench", "save"): (f"bench --shape 260K {BENCH} --save OUT", "tabulate"),
    ("bench", "json"): (f"bench m.bin {BENCH} --json OUT", "tabulate"),
    ("bench", "plot"): (f"bench m.bin {BENCH} --plot OUT.svg", "tabulate matplotlib"),
    ("data hellaswag", "out"): ("data hellaswag h.jsonl --tokenizer bytes --out OUT", ""),
    ("export", "target"): ("export m.bin OUT --format v1", ""),
    ("lens", "html"): (f"lens {PROMPT} --html OUT", ""),
    ("lens", "png"): (f"lens {PROMPT} --png OUT.svg", "matplotlib"),
    ("quantize", "target"): ("quantize m.bin OUT --group-size 4", ""),
    ("step", "html"): (f"step {PROMPT} --new-tokens 0 --compare numpy --html OUT", ""),
    ("tokenizer export", "target"): ("tokenizer export t.bin OUT", ""),
    ("tokenizer train", "out"): (
        "tokenizer train text.txt --vocab-size 280 --out OUT",
        "sentencepiece",
    ),
    ("trace", "out"): (f"trace {PROMPT} --out OUT.npz", ""),
}
FOLDERS: dict[tuple[str, str], tuple[str, str]] = {
    ("data prepare", "out"): (
        "data prepare text.txt --tokenizer bytes --val-tokens 9 --out OUT",
        "",
    ),
    ("export hf", "target"): ("export m.bin OUT --format hf --tokenizer t.bin", ""),
    ("spec", "html"): ("spec --html OUT", ""),
    ("vectors", "out"): ("vectors --examples 1 --out OUT", "hypothesis"),
}
# Folders that get a new folder with a number of its own each time, and runs; tested with them.
NUMBERED = {("conform", "out"), ("diff", "out")}
RUNS = {(f"train {family}", "out") for family in ("gpt2", "llama2", "text")}
OTHERS = {("conform", "json"), ("train gpt2", "plot"), ("train llama2", "plot")}
OLD = b"an old file"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bench, "READ_BYTES", 2**20)
    bench._much_data.cache_clear()
    chosen = {"llama2": {"rmsnorm": tables["llama2"]["rmsnorm"]}}
    monkeypatch.setattr("pyllm2.conform.vectors.tables", chosen)
    lay_out(tmp_path)
    write_shards(tmp_path)
    (tmp_path / "text.txt").write_text("one two three four five six seven eight nine\n" * 20)
    (tmp_path / "h.jsonl").write_text(HELLASWAG)
    return tmp_path


def written(line: str, needs: str) -> tuple[list[str], str]:
    """The arguments of a command, and the name of what it writes."""
    for module in needs.split():
        pytest.importorskip(module)
    argv = line.replace("OUT", "x").split()
    return argv, next(word for word in argv if re.fullmatch(r"x(\..*)?", word))


def outputs() -> set[tuple[str, str]]:
    """All arguments that name an output."""
    return {
        (" ".join(words), action.dest)
        for words, parser in COMMANDS.items()
        for action in parser._actions
        if action.type is output
    }


def test_every_output_is_in_a_table() -> None:
    """An argument whose help says that it is written is an output; all are tested here."""
    for words, parser in COMMANDS.items():
        for action in parser._actions:
            takes_name = action.metavar in ("FILE", "DIR", "FOLDER", "OUT", "FILE.model")
            if takes_name and re.search(r"\bwrit|new folder|folder for|plot ", action.help or ""):
                assert action.type is output, (words, action.dest)
    named = {(command.removesuffix(" hf"), dest) for command, dest in [*FILES, *FOLDERS]}
    assert outputs() == named | NUMBERED | RUNS | OTHERS


def test_every_command_with_an_output_has_force() -> None:
    for command, _ in outputs() - {("diff", "out")}:
        flags = COMMANDS[tuple(command.split())]._option_string_actions
        assert "--force" in flags, command


@pytest.mark.parametrize(("line", "needs"), FILES.values(), ids=map(" ".join, FILES))
def test_a_file_is_replaced_with_force_only(folder: Path, line: str, needs: str) -> None:
    """One line that names it, before any work; an empty file is nothing that could be lost."""
    argv, name = written(line, needs)
    (folder / name).write_bytes(OLD)
    outcome = in_process(argv, folder)
    assert (outcome.code, outcome.out) == (1, b"")
    assert outcome.err.decode() == f"pyllm2: error: {name}: {EXISTS}\n"
    assert (folder / name).read_bytes() == OLD
    (folder / name).write_bytes(b"")
    assert in_process(argv, folder).code == 0
    (folder / name).write_bytes(OLD)
    outcome = in_process([*argv, "--force"], folder)
    assert outcome.code == 0, outcome.err.decode()
    assert len((folder / name).read_bytes()) > len(OLD)


@pytest.mark.parametrize(("line", "needs"), FOLDERS.values(), ids=map(" ".join, FOLDERS))
def test_a_folder_is_replaced_with_force_only(folder: Path, line: str, needs: str) -> None:
    """And never if it has a file that the command has not written."""
    argv, name = written(line, needs)
    (folder / name).mkdir()
    outcome = in_process(argv, folder)
    assert outcome.code == 0, outcome.err.decode()
    files = {path: path.read_bytes() for path in (folder / name).rglob("*") if path.is_file()}
    first = min(files)

    first.write_bytes(OLD)
    outcome = in_process(argv, folder)
    assert (outcome.code, outcome.out) == (1, b"")
    assert outcome.err.decode() == f"pyllm2: error: {name}: {EXISTS}\n"
    assert first.read_bytes() == OLD

    outcome = in_process([*argv, "--force"], folder)
    assert outcome.code == 0, outcome.err.decode()
    assert {p: p.read_bytes() for p in (folder / name).rglob("*") if p.is_file()} == files

    (folder / name / "diary").write_bytes(OLD)
    outcome = in_process([*argv, "--force"], folder)
    assert (outcome.code, outcome.out) == (1, b"")
    assert outcome.err.decode().startswith(f"pyllm2: error: {name}/diary: is none of the files")
    assert all(path.read_bytes() == data for path, data in files.items())
    assert (folder / name / "diary").read_bytes() == OLD
    assert not list(folder.glob(".pyllm2-*"))


@pytest.mark.parametrize("name", ["model.bin", "loss.png", "tokenizer.bin"])
def test_a_run_replaces_no_file(folder: Path, name: str) -> None:
    """The folder may hold files of somebody else under the names of a run's results."""
    (folder / "out").mkdir()
    (folder / "out" / name).write_bytes(OLD)
    outcome = in_process(TRAIN, folder)
    assert outcome.code == 1
    assert outcome.err.decode() == f"pyllm2: error: out/{name}: {EXISTS}\n"
    assert (folder / "out" / name).read_bytes() == OLD
    assert in_process([*TRAIN, "--force"], folder).code == 0
    model = (folder / "out" / "model.bin").read_bytes()
    assert len(model) > len(OLD)
    outcome = in_process(TRAIN, folder)
    assert outcome.code == 1
    expected = "out: already contains a run: --resume continues it, --force begins a new one\n"
    assert outcome.err.decode().endswith(expected)


def test_a_plot_is_replaced_by_its_own_run(folder: Path) -> None:
    """Which is resumed, or begun anew."""
    pytest.importorskip("matplotlib")
    (folder / "loss.svg").write_bytes(OLD)
    argv = [*TRAIN, "--plot", "loss.svg"]
    outcome = in_process(argv, folder)
    assert outcome.err.decode() == f"pyllm2: error: loss.svg: {EXISTS}\n"
    assert not (folder / "out").exists()
    assert in_process([*argv, "--force"], folder).code == 0
    assert (folder / "loss.svg").read_bytes() != OLD
    assert in_process([*argv, "--resume"], folder).code == 0


def test_force_replaces_no_input(folder: Path) -> None:
    """Under whatever name, also in a folder that would be replaced."""
    (folder / "data").mkdir()
    (folder / "data" / "train.bin").write_text("a text " * 99)
    (folder / "link").symlink_to("m.bin")
    for line, target in (
        ("quantize m.bin link", "link"),
        ("export m.bin t.bin --format gguf --tokenizer t.bin", "t.bin"),
        ("data prepare data/train.bin --tokenizer bytes --out data", "data"),
    ):
        outcome = in_process([*line.split(), "--force"], folder)
        assert (outcome.code, outcome.out) == (2, b"")
        expected = f"pyllm2: error: {target}: the output would overwrite the input\n"
        assert outcome.err.decode() == expected


def test_two_outputs_of_one_name_are_refused(folder: Path) -> None:
    outcome = in_process(f"lens {PROMPT} --html x.svg --png ./x.svg".split(), folder)
    assert (outcome.code, outcome.err) == (2, b"pyllm2: error: ./x.svg: the name of two outputs\n")


def test_an_input_in_the_folder_is_found_through_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(OLD)
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(UsageError, match="overwrite the input"):
        check_folder(str(tmp_path / "link"), str(tmp_path / "real" / "a"), force=True)
