"""`pyllm2 gradcheck`: check gradients against finite differences, and backends against bounds."""

from __future__ import annotations

import argparse
import os
import runpy
from typing import Any

from pyllm2 import backends
from pyllm2.cli import numbers
from pyllm2.cli.flags import did_you_mean
from pyllm2.cli.output import Output
from pyllm2.errors import BackendError, FileError, UsageError

SUMMARY = "check every gradient against finite differences, and every backend against its bound"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "op",
        nargs="?",
        metavar="OP",
        help="gpt2, llama2, or one op: attention, llama2.rope, ...; or yours, FILE.py:NAME, with "
        "NAME_backward and NAME_inputs(random), which draws a tuple (default: all ops)",
    )
    parser.add_argument(
        "--examples",
        type=numbers.positive,
        default=20,
        metavar="N",
        help="number of random inputs per op",
    )
    parser.add_argument(
        "--seed",
        type=numbers.seed,
        default=0,
        metavar="N",
        help="random seed of the inputs, 0 to 2^64 - 1",
    )


def main(options: argparse.Namespace) -> int:
    """Print one line per op; exit code 1 if a gradient or a backend is outside its bound."""
    try:
        import hypothesis  # noqa: F401  (the tables of ops draw their inputs with it)
    except ImportError:
        raise BackendError("gradcheck needs hypothesis: pip install 'pyllm2[testing]'") from None
    if options.op is not None and ".py:" in options.op:
        return _own(options)
    from pyllm2.testing import gradcheck

    names = gradcheck.named(options.op)
    if not names:
        known = ", ".join((*gradcheck.MODELS, *gradcheck.NAMES))
        meant = did_you_mean(str(options.op), [*gradcheck.MODELS, *gradcheck.NAMES])
        raise UsageError(f"OP: {options.op!r}{meant or f': expected one of {known}'}")
    able = [name for name in backends.NAMES if backends.why_not(name) is None]
    rivals = {
        family: {name: backends.engine(name, family=family) for name in able}
        for family in sorted({name.partition(".")[0] for name in names})
    }
    output = Output()

    def line(op: str, relative: str, shares: list[str], verdict: str) -> None:
        columns = [f"{op:<20}", f"{relative:>12}", *(f"{share:>12}" for share in shares)]
        output.write(f"{' '.join(columns)}  {verdict}".rstrip().encode() + b"\n")

    line("gradient of", "differences", able, "")
    passed = True
    for name in names:
        ours = rivals[name.partition(".")[0]]
        found = gradcheck.check(name, ours, options.examples, options.seed)
        shares = [f"{share:.3f}" for share in found.bound_used.values()]
        line(name, f"{found.relative:.1e}", shares, "ok" if found.passed else "OUTSIDE")
        passed &= found.passed
    output.write(
        b"differences: largest error relative to the largest entry, in float64; "
        b"a backend: fraction of its bound that is used\n"
    )
    return 0 if passed else 1


def _own(options: argparse.Namespace) -> int:
    """Check an op of the user's file; exit code 1 if its gradient is off."""
    import numpy as np

    from pyllm2.testing import check_gradient

    path, _, name = options.op.rpartition(":")
    if not os.path.isfile(path):
        raise FileError(path, "no such file")
    try:
        module: dict[str, Any] = runpy.run_path(path)
    except Exception as error:  # whatever the file does
        raise FileError(path, f"cannot be run: {type(error).__name__}: {error}") from None
    forward = module.get(name) or module.get(f"{name}_forward")
    backward, draw = (module.get(f"{name}_{word}") for word in ("backward", "inputs"))
    wanted = {name: forward, f"{name}_backward": backward, f"{name}_inputs": draw}
    missing = [word for word, function in wanted.items() if not callable(function)]
    if missing:
        raise FileError(path, f"has no function {', '.join(missing)}")
    assert forward is not None
    assert backward is not None
    assert draw is not None
    random, worst = np.random.default_rng(options.seed), 0.0
    for _ in range(options.examples):
        try:
            inputs = draw(random)
            found = check_gradient(forward, backward, *inputs, seed=int(random.integers(2**32)))
        except (AssertionError, ValueError) as error:
            Output().write(f"{error}\n".encode())
            return 1
        worst = max(worst, found.relative)
    line = f"{name}: {options.examples} examples, largest relative error {worst:.1e}: ok"
    Output().write(f"{line}\n".encode())
    return 0
