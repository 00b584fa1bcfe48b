"""`conform --trainer`: train_gpt2.c passes; with one line changed, the first step is named."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pyllm2.conform import child
from pyllm2.conform.trainer import CASES, Events, TrainerCase, check, first_difference, read_losses
from tests.conform.wrong import CSRC
from tests.support.command import in_process

LIMITS = child.Limits(20.0, 2**29)
BY_NAME = {case.name: case for case in CASES}

# name, file, old, new, the case that shows it, words of the report
WRONG = [
    (
        "no bias correction",
        "common/adamw.c",
        "const float correction1 = 1.0f - powf(beta1, (float)t)",
        "const float correction1 = 1.0f",
        "smoke",
        "train loss of step 1: ",
    ),
    (
        "gradient not set to zero",
        "train_gpt2.c",
        "memset(t->grad, 0, (size_t)t->model.n * sizeof(float));",
        "",
        "smoke",
        "look at what grows with the step",
    ),
    (
        "training not shuffled",
        "train_gpt2.c",
        ".processes = 1, .shuffle = 1,",
        ".processes = 1, .shuffle = 0,",
        "smoke",
        "the order of training batches",
    ),
    (
        "validation goes on",
        "train_gpt2.c",
        "    loader_reset(&t->validation);\n",
        "",
        "smoke",
        "val loss before step 10: ",
    ),
    (
        "weight decay",
        "train_gpt2.c",
        "weight_decay = 0.0f",
        "weight_decay = 0.1f",
        "large-weights",
        "train loss of step ",
    ),
    (
        "padding in softmax",
        "gpt2/training.c",
        "gpt2_softmax_forward(acts->probs, acts->logits, N, V, Vp);",
        "gpt2_softmax_forward(acts->probs, acts->logits, N, Vp, Vp);",
        "padding",
        "val loss before step 0: ",
    ),
    (
        "stops early",
        "train_gpt2.c",
        "int64_t steps = 41;",
        "int64_t steps = 40;",
        "smoke",
        "no val loss before step 40: ",
    ),
]


def build(folder: Path, file: str = "", old: str = "", new: str = "") -> Path:
    """train_gpt2 of csrc with one place changed."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler named cc")
    shutil.copytree(CSRC, folder)
    if file:
        text = (folder / file).read_text()
        assert text.count(old) == 1, f"{file}: {old}"
        (folder / file).write_text(text.replace(old, new))
    program = folder / "train_gpt2"
    words = ["cc", "-O1", "-ffp-contract=off", str(folder / "train_gpt2.c"), "-lm"]
    subprocess.run([*words, "-o", str(program)], check=True, capture_output=True)
    return program


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("trainer") / "csrc")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_our_trainer_passes(case: TrainerCase, ours: Path, tmp_path: Path) -> None:
    result, _ = check((str(ours),), case, LIMITS, tmp_path)
    assert result.status == "passes", result


@pytest.mark.parametrize("wrong", WRONG, ids=lambda w: w[0])
def test_the_first_wrong_step_is_named(wrong: tuple[str, ...], tmp_path: Path) -> None:
    _, file, old, new, case, words = wrong
    program = build(tmp_path / "csrc", file, old, new)
    result, _ = check((str(program),), BY_NAME[case], LIMITS, tmp_path / "out")
    assert result.status == "differs"
    assert words in result.says
    names = {path.name for path in Path(result.folder).iterdir()}
    assert {"cmd", "expected", "got", "gpt2_124M.bin", "dev"} <= names
    again = subprocess.run([Path(result.folder) / "cmd"], capture_output=True)
    assert read_losses(again.stdout) == read_losses((Path(result.folder) / "got").read_bytes())


def test_a_debug_state_names_the_tensor(tmp_path: Path) -> None:
    """Written by the program from the checkpoint that it was given; one gradient is wrong."""
    from pyllm2.backends import Engine
    from pyllm2.conform.trainer import first_tensor, lay_out, parameters
    from pyllm2.formats.llmc import DEBUG_MAGIC
    from pyllm2.formats.llmc_header import header_bytes
    from pyllm2.gpt2 import ops
    from pyllm2.gpt2.training import TrainableGPT2

    case = BY_NAME["heads"]
    lay_out(case, tmp_path)
    params = parameters(case)
    model = TrainableGPT2(case.config, params, Engine(ops))
    x = np.random.default_rng(1).integers(0, 61, (2, 5)).astype(np.int32)
    acts = model.forward(x, x)
    grads = model.backward(acts, np.full_like(acts.losses, 0.1))

    def write() -> None:
        loss = np.array([acts.losses.mean()], np.float32)
        logits = acts.logits[..., :64]
        parts = [x, x, logits, loss, *(np.ascontiguousarray(g) for g in grads.values())]
        data = header_bytes(DEBUG_MAGIC, 2, 2, 5) + b"".join(part.tobytes() for part in parts)
        (tmp_path / "state.bin").write_bytes(data)

    write()
    assert first_tensor(case, tmp_path) == ""
    grads.qkvw[0, 3, 1] += np.float32(0.01)
    write()
    assert first_tensor(case, tmp_path) == (
        "state.bin: gradient of qkvw is the first tensor that differs"
    )


def test_losses_are_compared_in_order() -> None:
    case = BY_NAME["smoke"]
    wanted = Events(["val loss before step 0", "train loss of step 0"], [4.0, 3.0], [1e-5, 1e-5])
    right = b"banner\nval loss 4.000001\nstep 0: train loss 2.999999 (took 1 ms)\n"
    assert first_difference(case, wanted, right) == ""
    for text, words in (
        (right.replace(b"2.99", b"2.98"), "train loss of step 0: 2.989999 in place of 3.000000"),
        (right.replace(b"4.000001", b"nan"), "val loss before step 0: nan in place of 4.000000"),
        (b"val loss 4.0\n", "no train loss of step 0: stdout has 1 losses of 2"),
        (b"step 0: train loss 3.0\n", "a train loss in place of the val loss before step 0"),
        (right + right, "4 losses in place of 2"),
    ):
        assert words in first_difference(case, wanted, text)


def test_the_command_reports_each_case(ours: Path, tmp_path: Path) -> None:
    words = ["conform", "--trainer", "--only", "smoke", str(ours)]
    outcome = in_process(words, tmp_path)
    assert (outcome.code, outcome.err) == (0, b"")
    assert outcome.out.startswith(b"passes   smoke")
    outcome = in_process(["conform", "--trainer", "/bin/true"], tmp_path)
    assert outcome.code == 2
    assert b"no losses came out: exit code 0" in outcome.err
    outcome = in_process(["conform", "--trainer", "--list"], tmp_path)
    assert b"epochs" in outcome.out
    outcome = in_process([*words, "--only", "nosuch"], tmp_path)
    assert (outcome.code, b"'nosuch' is none of smoke" in outcome.err) == (2, True)
    outcome = in_process([*words, "--args", "{model}"], tmp_path)
    assert (outcome.code, b"--args: not with --trainer" in outcome.err) == (2, True)
