"""A property: one thing that is checked, the cases that check it, and what usually breaks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyllm2.conform.case import Case
from pyllm2.conform.maker import Maker
from pyllm2.conform.reference import Expected

Draw = Callable[[Maker, int], tuple[Case, Expected]]


@dataclass(frozen=True)
class Property:
    """name: one word. says: what holds. cause: what usually breaks it.

    needs: properties that must pass first, because these cases contain theirs
    words: of the template, without which it cannot be driven
    draw: the i-th case; it raises NoCaseError if there is none
    cases: how many are tried on a program that is fast
    switch: of the dialect, whose older value the cases also judge
    needs_scores: of the vocabulary   without: only for programs that lack this word
    chat: tested by --chat, which leaves out all others
    """

    name: str
    says: str
    cause: str
    draw: Draw
    cases: int = 6
    needs: tuple[str, ...] = ("smoke",)
    words: tuple[str, ...] = ()
    switch: str = ""
    needs_scores: bool = False
    run_c_only: bool = False
    without: str = ""
    chat: bool = False
