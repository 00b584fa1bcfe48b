"""One parametrised test per golden case; without golden files, one skipped test."""

from __future__ import annotations

import json

import pytest

from tests.support.golden import shared_folder

FILES = {"generation": "generations.json", "conversation": "chat.json", "command_line": "cli.json"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise `generation`, `conversation` and `command_line` by the float32 cases."""
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
