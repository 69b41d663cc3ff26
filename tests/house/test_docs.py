"""What code, README and docs point at exists; the reference of flags is the parsers'; quoted commands parse."""
import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml

import run_pipeline

ROOT = Path(__file__).resolve().parents[2]
FORMS = (".py", ".md", ".yml", ".toml", ".cff", ".txt")
IGNORED = {".git", *(line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines())}
SOURCES = [path for top in ROOT.iterdir() if top.name not in IGNORED
           for path in ([top] if top.is_file() else top.rglob("*")) if path.suffix in FORMS and path.is_file()]
PAGES = [path for path in SOURCES if path.suffix == ".md"]


def without_code(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def missing(target, anchor):
    """Whether a page, or the place in it, is not there."""
    return not target.exists() or bool(anchor) and anchor not in anchors(target)


def test_every_page_and_place_that_code_and_docs_cite_exists():
    cited = [(path, *found) for path in SOURCES for found in
             re.findall(r"(?<![\w/.])(docs/[\w/]+\.md)(?:#([\w-]+))?", path.read_text(encoding="utf-8"))]
    assert len(cited) > 20
    assert [where for where in cited if missing(ROOT / where[1], where[2])] == []


def test_every_relative_link_of_a_page_leads_somewhere():
    links = [(page, *found) for page in PAGES for found in
             re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)", without_code(page.read_text(encoding="utf-8")))]
    assert len(links) > 20
    assert [link for link in links if missing(link[0].parent / link[1] if link[1] else link[0], link[2])] == []


def test_the_contract_is_cited_by_page():
    name = "SP" + "EC"
    assert [path for path in SOURCES if re.search(rf"\b{name}\b", path.read_text(encoding="utf-8"))] == []


def test_the_reference_of_flags_is_what_the_parsers_say():
    generator = runpy.run_path(str(ROOT / "docs" / "make_commands.py"))
    said = generator["PAGE"].read_text(encoding="utf-8")
    assert said == generator["page"](), "run python docs/make_commands.py"
    assert {path.name for path in ROOT.glob("*.py")} == set(re.findall(r"^## (\w+\.py)$", said, re.MULTILINE))


def commands(page):
    """The commands `python X.py …` in a page's code blocks, each a list of words, without assignments and comments."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    ours = [line for line in lines if re.match(r"\s*([A-Z_0-9]+=\S+ )*python \w+\.py", line)]
    words = [shlex.split(line, comments=True) for line in ours]
    return [line[line.index("python") + 1:] for line in words]


def test_every_command_that_a_page_shows_is_one_that_its_script_takes(capsys):
    quoted = [command for page in PAGES for command in commands(page)]
    assert len(quoted) > 30
    for command in quoted:
        try:
            run_pipeline.arguments(command)
        except SystemExit:
            pytest.fail(f"{shlex.join(command)}: {capsys.readouterr().err}")


def test_metadata_and_workflow_are_whole():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= cited.keys()
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    job, = workflow["jobs"].values()
    assert job["strategy"]["matrix"] == {"os": ["ubuntu-latest", "macos-latest"], "python": ["3.11", "3.12", "3.13"]}
    assert any("make test" in step.get("run", "") for step in job["steps"])
