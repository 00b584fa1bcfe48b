"""One parametrised test a golden case; without golden files, one that is skipped."""

from __future__ import annotations

import json

import pytest

from ..conftest import shared_folder

FILES = {"generation": "generations.json", "conversation": "chat.json", "command_line": "cli.json"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Fill in `generation`, `conversation`, `command_line` with the cases of the fp32 engine."""
    folder = shared_folder()
    for name, file in FILES.items():
        if name in metafunc.fixturenames:
            cases = []
            if folder is not None:
                found = json.loads((folder / "golden" / "llama2" / file).read_text())
                cases = found["cases"] if isinstance(found, dict) else found
            ours = [case for case in cases if case["engine"] == "run"]
            ids = [case["name"] for case in ours]
            metafunc.parametrize(name, ours or [None], ids=ids or ["absent"])
