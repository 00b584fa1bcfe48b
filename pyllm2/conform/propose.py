"""A command line for a program that run.c's does not fit: those of other programs are tried."""

from __future__ import annotations

from dataclasses import replace

from pyllm2.conform.adapter import PROPOSALS, parse
from pyllm2.conform.session import Session
from pyllm2.errors import PyLLM2Error


def last_command(session: Session) -> str:
    """The command of the smoke test."""
    return session.adapter.shell_line(session.smoke_case())


def propose(session: Session) -> tuple[str, str] | None:
    """A template and the place of the vocabulary with which the program says its ids, if any."""
    for text, cwd in PROPOSALS:
        adapter = replace(session.adapter, template=parse(text), cwd_tokenizer=cwd)
        trial = Session(adapter, session.options)
        try:
            if trial.smoke() is None:
                return text, cwd
        except PyLLM2Error:
            return None
    return None
