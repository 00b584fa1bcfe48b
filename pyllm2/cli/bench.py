"""`pyllm2 bench`: race the backends on one model."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from pyllm2 import backends, bench
from pyllm2.cli.common import say
from pyllm2.cli.output import Output
from pyllm2.errors import BackendError, UsageError
from pyllm2.formats.writer import atomic_write


def main(options: argparse.Namespace) -> int:
    try:
        from tabulate import tabulate
    except ImportError:
        raise BackendError("bench needs tabulate: pip install 'pyllm2[bench]'") from None
    if (options.model is None) == (options.shape is None):
        raise UsageError("bench: expected either MODEL or --shape")
    names = options.backends.split(",") if options.backends else _available()
    bench.check_backends(names)
    output = Output()
    with tempfile.TemporaryDirectory() as folder:
        path = options.model
        if path is None:
            path = options.save or str(Path(folder) / f"random{options.shape}.bin")
            say(f"writing random weights of the {options.shape} shape to {path}")
            bench.write_random(options.shape, path)
        report = bench.run(
            path, names, options.against, options.prompt_tokens, options.new_tokens,
            options.repeats, say,
        )  # fmt: skip
    products = ""
    if report.product_rate.values:
        rate = report.product_rate.median
        products = f"matrix products alone: {rate:.0f} prompt tokens/s; "
    rival = "c" if "c" in names else names[0]
    head = (
        f"{options.shape or options.model}: {report.weight_bytes / 1e6:.1f} MB of weights, "
        f"{report.prompt_tokens} prompt and {report.new_tokens} new tokens, "
        f"{options.threads or report.threads} threads; median of {options.repeats}, in turn\n"
        f"reading memory: {report.read_bandwidth.median / 1e9:.1f} GB/s "
        f"(spread {100 * report.read_bandwidth.spread:.0f} %), "
        f"so at most {report.decode_limit:.1f} tokens/s; "
        f"{products}ratio: to {rival}\n\n"
    )
    table = tabulate(report.rows(rival), bench.HEADERS, tablefmt="github", disable_numparse=True)
    output.write_raw(f"{head}{table}\n".encode())
    if options.json:
        with atomic_write(options.json) as file:
            file.write((json.dumps(report.as_json(), indent=1) + "\n").encode())
    if options.plot:
        bench.plot(report, options.plot)
    return 0


def _available() -> list[str]:
    return [n for n in backends.NAMES if backends.why_not(n) is None and "strict" not in n]
