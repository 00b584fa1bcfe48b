"""`pyllm2 gradcheck`: every backward against differences of its forward, backends by bounds."""

from __future__ import annotations

import argparse

from pyllm2 import backends
from pyllm2.cli.output import Output
from pyllm2.errors import BackendError, UsageError


def main(options: argparse.Namespace) -> int:
    """A line for each backward; exit code 1 if anything is outside."""
    try:
        import hypothesis  # noqa: F401  which the tables of ops draw their inputs with
    except ImportError:
        raise BackendError("gradcheck needs hypothesis: pip install 'pyllm2[testing]'") from None
    from pyllm2.testing import gradcheck

    names = gradcheck.named(options.op)
    if not names:
        known = ", ".join((*gradcheck.MODELS, *gradcheck.NAMES))
        raise UsageError(f"OP: {options.op!r}: expected one of {known}")
    able = [name for name in backends.NAMES if backends.why_not(name) is None]
    rivals = {
        package: {name: backends.ops(name, package=package) for name in able}
        for package in sorted({name.partition(".")[0] for name in names})
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
        shares = [f"{share:.3f}" for share in (found.shares or {}).values()]
        line(name, f"{found.relative:.1e}", shares, "ok" if found.passed else "OUTSIDE")
        passed &= found.passed
    output.write(
        b"differences: worst error beside the largest entry, in float64; "
        b"a backend: share of its bound used\n"
    )
    return 0 if passed else 1
