"""What all tests share: where the golden files are, and how hard hypothesis looks."""

from __future__ import annotations

import os

# Before NumPy is imported. Test processes run side by side: BLAS threads that spin for more work
# would take the processors from one another.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# With as many threads as there are, before a command in this process asks for fewer: Numba cannot
# change its mind.
with suppress(ImportError):
    import numba  # noqa: F401

REPOSITORY = Path(__file__).parents[1]

# derandomize: the same examples each time, so that a red run is red again. `soak` explores.
_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=25, derandomize=True, **_common)
settings.register_profile("ci", max_examples=100, derandomize=True, **_common)
settings.register_profile("soak", max_examples=5000, **_common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def shared_folder() -> Path | None:
    """The folder of golden files: $PYLLM2_SHARED, or `shared` beside the checkout."""
    named = os.environ.get("PYLLM2_SHARED")
    for folder in [Path(named)] if named else [REPOSITORY.parent / "shared"]:
        if (folder / "golden").is_dir():
            return folder
    return None


@pytest.fixture(scope="session")
def shared() -> Path:
    """Skips where there are no golden files; fails instead if PYLLM2_REQUIRE_SHARED is set."""
    folder = shared_folder()
    if folder is None:
        reason = "no golden files: neither $PYLLM2_SHARED nor ../shared has a folder `golden`"
        if os.environ.get("PYLLM2_REQUIRE_SHARED"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """The folder golden/llama2."""
    return shared / "golden" / "llama2"
