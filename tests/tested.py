"""Which backends the tests try: all, or those in $PYLLM2_TEST_BACKENDS (a comma between)."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pyllm2 import backends

_named = os.environ.get("PYLLM2_TEST_BACKENDS")
BACKENDS = tuple(_named.split(",")) if _named else backends.NAMES


def ops_of(backend: str, package: str = "llama2") -> Any:
    """The ops of a backend; skips, with the reason, where it cannot run."""
    reason = backends.why_not(backend)
    if reason is not None:
        pytest.skip(f"backend {backend} {reason}")
    return backends.ops(backend, package=package)
