"""Folder of the golden files, recorded from the original programs."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def shared_folder() -> Path | None:
    """The folder of golden files: $PYLLM2_SHARED, or `shared` beside the checkout."""
    named = os.environ.get("PYLLM2_SHARED")
    for folder in [Path(named)] if named else [REPOSITORY.parent / "shared"]:
        if (folder / "golden").is_dir():
            return folder
    return None
