"""Right programs pass every property; of wrong ones the right property is named, and no other."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pyllm2.conform import child
from pyllm2.conform.adapter import RUN_C, RUN_C_CHAT, Adapter, parse
from pyllm2.conform.case import WORDS, Case
from pyllm2.conform.properties import BY_NAME, PROPERTIES
from pyllm2.conform.result import FAILURES, NOT_DRIVABLE, NOT_TESTED, PASSES, Result
from pyllm2.conform.session import Options, Session
from tests.conform.wrong import WRONG, Wrong, build
from tests.support.command import in_process
from tests.support.tested import able

# tools/conform_matrix.py runs all of them, against all properties.
QUICK = (
    "sums of whole vectors only;w1 and w3 exchanged;own position left out;halves rotated;"
    "cache strided by key/value heads;heads interleaved;classifier always shared;no epsilon;"
    "last of equal logits;index for id;never merged;scores never stored;triples merged;"
    "last of equal scores;prompt read byte by byte;byte ids without the offset;NULs after pieces;"
    "byte pieces as they are;first space kept;BOS goes on;a banner;steps not limited;signed shift;"
    "state never advances;temperature above 1 ignored;coin not multiplied by the sum;"
    "endless output;memory blow-up;EOS does not end an answer;no random numbers inside a prompt"
).split(";")


class InThisProcess(Adapter):
    """`pyllm2 run` without a process: the command line is called."""

    def run_in(self, case: Case, folder: Path) -> child.Outcome:
        done = in_process([*self.program[1:], *self.template.fill(case.words())], folder)
        return child.Outcome(done.code, done.out, done.err, "", 0.0)


def checked(adapter: Adapter, folder: Path, **options: object) -> list[Result]:
    """All results, without cases that are drawn until the time is up."""
    fixed = {"skip": ("drawn",), "out": folder / "conform.d", "shrink_seconds": 0.7}
    session = Session(adapter, Options(**{**fixed, **options}))  # type: ignore[arg-type]
    assert session.smoke() is None
    return list(session.check_all())


_NEEDED = ("smoke", *BY_NAME["hot-law"].needs)


def not_passing(results: list[Result]) -> list[str]:
    return [f"{r.name}: {r.status}: {r.why}" for r in results if r.status != PASSES]


def test_our_run_passes_everything(ours: Path, tmp_path: Path) -> None:
    """All properties, each by its name."""
    results = checked(Adapter((str(ours),)), tmp_path)
    assert not not_passing(results)
    fitting = {p.name for p in PROPERTIES if p.without not in WORDS and not p.chat}
    assert {r.name for r in results} == {*fitting, "stories"}


def test_our_chat_passes_everything(ours: Path, tmp_path: Path) -> None:
    """With a flag for the system prompt, and where it is asked for."""
    seen = set()
    for template in (RUN_C_CHAT, f"{RUN_C} -m chat"):
        results = checked(Adapter((str(ours),), parse(template)), tmp_path, chat=True)
        assert not [r for r in results if r.status not in (PASSES, NOT_TESTED, NOT_DRIVABLE)]
        seen |= {r.name for r in results if r.status == PASSES}
    assert seen == {p.name for p in PROPERTIES if p.chat}


NO_SEED = parse("{model} -z {tokenizer} -t {temperature} [-p {topp}] [-n {steps}]")
LAWS = ("nucleus-law", "hot-law")


def test_laws_of_sampling_hold_without_a_seed(ours: Path, tmp_path: Path) -> None:
    results = checked(Adapter((str(ours),), NO_SEED), tmp_path, only=(*_NEEDED, *LAWS))
    assert not not_passing(results)
    assert {*LAWS} < {r.name for r in results}


@pytest.mark.parametrize("name", ["temperature above 1 ignored", "state never advances"])
def test_a_law_finds_a_wrong_sampler(name: str, tmp_path: Path) -> None:
    (wrong,) = [w for w in WRONG if w.name == name]
    program = build(wrong, tmp_path / "wrong")
    results = checked(Adapter((str(program),), NO_SEED), tmp_path, only=(*_NEEDED, *LAWS))
    assert [r.name for r in results if r.status in FAILURES] == ["hot-law"]


def test_a_port_in_float64_passes(tmp_path: Path) -> None:
    """Plain Python, double precision: no finding comes from arithmetic."""
    adapter = Adapter((sys.executable, "-S", "-E", str(Path(__file__).with_name("port.py"))))
    only = ("smoke", "rope", "grouped-heads", "epsilon", "large-scores", "merges", "top-p")
    assert not not_passing(checked(adapter, tmp_path, only=only))


def test_a_program_that_is_slow_on_the_bundled_model_does_not_hang(
    ours: Path, tmp_path: Path
) -> None:
    """Every model before has some hundred weights: the time says nothing about this one."""
    program = tmp_path / "slow"
    slow = f'[ $(wc -c < "$1") -gt 1000000 ] && sleep 5\nexec {ours} "$@"\n'
    program.write_text("#!/bin/sh\n" + slow)
    program.chmod(0o755)
    adapter = Adapter((str(program),), limits=child.Limits(2.0, 2**28))
    (result,) = checked(adapter, tmp_path, only=("stories",))
    assert (result.status, "see --timeout" in result.why) == (NOT_TESTED, True)


@pytest.mark.parametrize("backend", able())
def test_pyllm2_run_passes(backend: str, tmp_path: Path) -> None:
    """Every backend, on the properties that a backend can break."""

    class Chosen(InThisProcess):
        def run_in(self, case: Case, folder: Path) -> child.Outcome:
            words = [*self.template.fill(case.words()), b"--backend", backend.encode()]
            done = in_process(["run", *words], folder)
            return child.Outcome(done.code, done.out, done.err, "", 0.0)

    only = ("smoke", "vector-tails", "multi-query", "own-classifier", "epsilon", "argmax-ties")
    only += ("large-scores", "prompt", "top-p")
    assert not not_passing(checked(Chosen(("run",)), tmp_path, only=only))


@pytest.mark.parametrize("wrong", [w for w in WRONG if w.name in QUICK], ids=lambda w: w.name)
def test_a_wrong_program_is_found(wrong: Wrong, ours: Path, tmp_path: Path) -> None:
    """The right property, a small case, a folder that repeats it; what it needs still passes."""
    program = build(wrong, tmp_path / "wrong")
    chat = BY_NAME[wrong.property].chat
    template = parse(RUN_C_CHAT if chat else RUN_C)
    adapter = Adapter((str(program),), template, limits=child.Limits(2.0, 2**27))
    only = (*BY_NAME[wrong.property].needs, wrong.property, "smoke")
    results = checked(adapter, tmp_path, only=only, chat=chat)
    (result,) = [r for r in results if r.status not in (PASSES, NOT_TESTED)]
    assert result.name == wrong.property
    assert result.status in (FAILURES if wrong.status == "differs" else (wrong.status,))
    found = result.finding
    assert found is not None
    assert found.case.n_layers <= 2
    files = {path.name for path in Path(found.folder).iterdir()}
    assert {"cmd", "expected", "got"} <= files


def test_every_quick_program_exists() -> None:
    """At least 25 of them, and the table has one for most properties."""
    names = {wrong.name for wrong in WRONG}
    assert set(QUICK) <= names
    assert len(QUICK) >= 25
    assert len(names) == len(WRONG)
    assert {wrong.property for wrong in WRONG} <= BY_NAME.keys()
