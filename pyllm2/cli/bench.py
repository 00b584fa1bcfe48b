"""`pyllm2 bench`: compare the speed of the backends on one model."""

from __future__ import annotations

import argparse

from pyllm2 import backends
from pyllm2.cli import flags, numbers
from pyllm2.cli.output import Output, say
from pyllm2.cli.outputs import add_force, check_outputs, output
from pyllm2.errors import BackendError, UsageError

SUMMARY = "measure the speed of the backends, as a fraction of the limits of this machine"
SHAPES = ("260K", "15M", "42M", "110M")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="checkpoint, instead of --shape")
    parser.add_argument(
        "--shape", choices=SHAPES, help="a model of this published shape with random weights"
    )
    parser.add_argument(
        "--save", type=output, metavar="FILE", help="write the random checkpoint to FILE"
    )
    parser.add_argument(
        "--backends",
        type=flags.names_of(backends.NAMES),
        metavar="A,B",
        help="backends to measure (default: all that can run here, except the strict ones)",
    )
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="PROGRAM",
        help="also measure a program with the flags of llama2.c's run (repeatable)",
    )
    flags.add_threads(parser)
    for flag, default, text in (
        ("--prompt-tokens", 128, "length of the prompt in tokens"),
        ("--new-tokens", 64, "number of tokens to decode"),
        ("--repeats", 5, "number of measurements per backend"),
    ):
        parser.add_argument(flag, type=numbers.positive, default=default, metavar="N", help=text)
    parser.add_argument(
        "--json", type=output, metavar="FILE", help="also write all samples to FILE as JSON"
    )
    parser.add_argument(
        "--plot",
        type=output,
        metavar="FILE",
        help="also plot the fractions to FILE (PNG, SVG or PDF)",
    )
    add_force(parser)


def main(options: argparse.Namespace) -> int:
    try:
        from tabulate import tabulate
    except ImportError:
        raise BackendError("bench needs tabulate: pip install 'pyllm2[bench]'") from None
    import json
    import tempfile
    from pathlib import Path

    from pyllm2 import bench
    from pyllm2.formats.writer import atomic_write
    from pyllm2.training.plot import image_format, require_plot

    if (options.model is None) == (options.shape is None):
        raise UsageError("bench: expected either MODEL or --shape")
    names = options.backends or _available()
    for name in names:
        backends.require(name)
    targets = options.save, options.json, options.plot
    check_outputs(targets, options.model, force=options.force)
    if options.plot:
        require_plot()
        image_format(options.plot)
    output = Output()
    with tempfile.TemporaryDirectory() as folder:
        path = options.model
        if path is None:
            path = options.save or str(Path(folder) / f"random{options.shape}.bin")
            say(f"writing random weights of the {options.shape} shape to {path}")
            bench.write_random(options.shape, path)
        report = bench.run(
            path,
            names,
            options.against,
            options.prompt_tokens,
            options.new_tokens,
            options.repeats,
            say,
        )
    products = ""
    if report.product_rate.values:
        rate = report.product_rate.median
        products = f"matrix products alone: {rate:.0f} prompt tokens/s; "
    rival = "c" if "c" in names else names[0]
    head = (
        f"{options.shape or options.model}: {report.weight_bytes / 1e6:.1f} MB of weights, "
        f"{report.prompt_tokens} prompt and {report.new_tokens} new tokens, "
        f"{options.threads or report.threads} threads; median of {options.repeats} rounds\n"
        f"memory bandwidth: {report.read_bandwidth.median / 1e9:.1f} GB/s "
        f"(spread {100 * report.read_bandwidth.spread:.0f} %), "
        f"which allows {report.decode_limit:.1f} tokens/s; "
        f"{products}ratios to {rival}\n\n"
    )
    table = tabulate(report.rows(rival), bench.HEADERS, tablefmt="github", disable_numparse=True)
    output.write(f"{head}{table}\n".encode())
    if options.json:
        with atomic_write(options.json) as file:
            file.write((json.dumps(report.as_json(), indent=1) + "\n").encode())
    if options.plot:
        bench.plot(report, options.plot)
    return 0


def _available() -> list[str]:
    """The backends that can run here, without the strict ones."""
    return [n for n in backends.NAMES if backends.why_not(n) is None and "strict" not in n]
