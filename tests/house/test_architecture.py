"""The shape of the house: folders of utils/ import one way, no room is too large, tests lie by their subjects."""
import ast
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "utils").rglob("*.py"))
GENERATOR = runpy.run_path(str(ROOT / "docs" / "make_architecture.py"))


def test_folders_import_one_way_and_the_picture_shows_it():
    graph = GENERATOR["folders"]()
    assert len(graph) > 10 and graph["utils"] == set()
    GENERATOR["layers"](graph)
    assert GENERATOR["PICTURE"].read_text(encoding="utf-8") == GENERATOR["picture"](), "run make docs"


def test_arrows_in_a_circle_are_found():
    with pytest.raises(ValueError, match="a → b → c → a"):
        GENERATOR["layers"]({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()})


def test_every_folder_says_what_lives_there_what_it_takes_and_what_it_gives():
    for folder in {path.parent for path in MODULES} - {ROOT / "utils"}:
        says = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))).splitlines()
        assert [line.split()[0] for line in says[1:]] == ["Takes", "Gives"], folder


def test_no_module_is_much_longer_than_400_lines():
    assert [path for path in MODULES if len(path.read_text(encoding="utf-8").splitlines()) > 430] == []


def test_tests_lie_in_the_folders_of_their_subjects():
    folders = {path.parent.name for path in MODULES} - {"utils"}
    tested = {path.parent.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert tested - folders == {"house", "mini_nsd"}
