"""`pyllm2 doctor`: what is a file, is it whole, which command takes it."""

from __future__ import annotations

import argparse
import json

from pyllm2.cli.output import Output, escaped

SUMMARY = "say what files are, whether they are whole, and which command takes them"
EXAMPLE = """\
example:
  pyllm2 doctor model.bin tokenizer.bin
exit code: 0 fine, 1 broken, 3 not supported"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLE
    parser.add_argument("paths", nargs="+", metavar="PATH", help="file or folder")
    parser.add_argument("--json", action="store_true", help="print a JSON list of findings")


def main(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from pyllm2.inference.doctor import BROKEN, examine

    output = Output()
    findings = [examine(path) for path in options.paths]
    if options.json:
        output.write(json.dumps([asdict(finding) for finding in findings]).encode() + b"\n")
    else:
        words = {0: "fine", 1: "broken", 3: "not supported"}
        for finding in findings:
            lines = [f"{finding.path}: {words[finding.code]}: {finding.kind}"]
            lines += [f"  {line}" for line in finding.lines]
            lines += [f"  try: {finding.command}"] if finding.command else []
            text = "\n".join(escaped(line) for line in lines) + "\n"
            output.write(text.encode("utf-8", "surrogateescape"))
    codes = {finding.code for finding in findings}
    return BROKEN if BROKEN in codes else max(codes)
