"""What HOUSE.md says of the whole tree, where a quick look at the text can check it."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
ROOMS = "pyllm2 csrc tests tools".split()
SOURCES = [
    path
    for room in ROOMS
    for path in sorted((REPOSITORY / room).rglob("*"))
    if path.suffix in (".py", ".c", ".h")
]
HERE = Path(__file__)


def found(pattern: str, flags: re.RegexFlag = re.NOFLAG) -> list[str]:
    """`file:line` of every match in the sources but this file."""
    places = []
    for path in SOURCES:
        if path != HERE:
            text = path.read_text(encoding="utf-8")
            for match in re.finditer(pattern, text, flags):
                line = text.count("\n", 0, match.start()) + 1
                places.append(f"{path.relative_to(REPOSITORY)}:{line}")
    return places


def test_no_file_is_longer_than_500_lines() -> None:
    """A longer one has a second subject."""
    lengths = {path: path.read_text(encoding="utf-8").count("\n") for path in SOURCES}
    assert not {str(path): n for path, n in lengths.items() if n > 500}


def test_the_formatter_is_overruled_a_handful_of_times() -> None:
    places = found("# fmt: " + "skip")
    assert len(places) <= 10, places


def test_a_whole_pass_is_declared_and_not_searched_for() -> None:
    """`Engine` says what a backend has in one piece."""
    assert not found(r'getattr\([^)]*"(forward|losses|add_gradient)"')


def test_no_cache_name_is_composed_by_hand() -> None:
    """The kernel decorator derives it from the files that a kernel can reach."""
    assert not found(r"^_?FINGERPRINT", re.MULTILINE)


def test_nothing_points_outside_the_repository() -> None:
    """No path of a developer's machine; recordings are found by $PYLLM2_SHARED or ../shared."""
    assert not found(r"/home/\w+|/root/|/work/|/Users/")


def test_the_house_names_places_that_exist() -> None:
    """Every path in backquotes in HOUSE.md and the README, and every link."""
    for page in (REPOSITORY / "pyllm2" / "HOUSE.md", REPOSITORY / "README.md"):
        text = page.read_text(encoding="utf-8")
        paths = re.findall(r"`((?:[\w.*]+/)+[\w.*]*)`", text)
        paths += re.findall(r"\]\(((?!http)[^)#]+)\)", text)
        assert len(paths) > 5
        for path in paths:
            here = [*REPOSITORY.glob(path), *(REPOSITORY / "pyllm2").glob(path)]
            assert here or path.startswith(("run/", "mine/", "data/")), f"{page.name}: {path}"


def test_the_rooms_of_the_package_are_those_of_the_house() -> None:
    """A new folder has a line in HOUSE.md."""
    text = (REPOSITORY / "pyllm2" / "HOUSE.md").read_text(encoding="utf-8")
    for folder in (REPOSITORY / "pyllm2").iterdir():
        if folder.is_dir() and folder.name != "__pycache__":
            assert f"{folder.name}/" in text, folder.name
