"""`pyllm2 completion`: what a shell needs to complete commands and flags with the Tab key."""

from __future__ import annotations

import argparse

from pyllm2.cli.output import Output
from pyllm2.errors import BackendError

SUMMARY = "print a script that completes commands and flags in your shell"
SHELLS = ("bash", "zsh", "fish", "powershell")
EXAMPLE = """\
examples:
  source <(pyllm2 completion bash)      (in ~/.bashrc or ~/.zshrc)
  pyllm2 completion fish > ~/.config/fish/completions/pyllm2.fish"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLE
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def main(options: argparse.Namespace) -> int:
    try:
        from argcomplete.shell_integration import shellcode
    except ImportError:
        raise BackendError(
            "completion needs argcomplete: pip install 'pyllm2[completion]'"
        ) from None
    Output().write(shellcode(["pyllm2"], shell=options.shell).encode() + b"\n")
    return 0


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks for completions; returns without argcomplete."""
    try:
        from argcomplete import autocomplete
    except ImportError:
        return
    autocomplete(parser)
