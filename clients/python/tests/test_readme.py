"""The program at the top of the README, word for word."""

from __future__ import annotations

import pathlib
import re

from servers import REPO, Server, run_app

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"


def test_the_first_lines_do_the_job(shared: Server, spool: pathlib.Path) -> None:
    program = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)[0]
    assert program == (REPO / "examples/python/tour.py").read_text()
    assert len([line for line in program.splitlines() if line.strip() and "import" not in line]) == 10 - 1
    lines = run_app(program, shared.address, spool).splitlines()
    assert lines[:5] == ["execution failed", "step completed", "step failed", "artifact stored", "live failed"]
    assert lines[5].endswith(" boom")


def test_every_test_that_the_readme_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", README.read_text()))
    assert len(named) > 20
    sources = "".join(path.read_text() for path in pathlib.Path(__file__).parent.glob("test_*.py"))
    assert {name for name in named if f"def {name}(" not in sources} == set()


def test_every_test_that_the_docs_name_is_there() -> None:
    rows = [line for line in (REPO / "docs/clients.md").read_text().splitlines() if line.startswith("|")]
    python = set(re.findall(r"`(test_\w+)`", "\n".join(rows)))
    typescript = set(re.findall(r'"([^"|]+)"', "\n".join(rows)))
    assert len(python) > 20
    assert len(typescript) > 15
    sources = "".join(path.read_text() for path in pathlib.Path(__file__).parent.glob("test_*.py"))
    assert {name for name in python if f"def {name}(" not in sources} == set()
    sources = "".join(path.read_text() for path in (REPO / "clients/typescript/test").glob("*.test.ts"))
    assert {name for name in typescript if f'"{name}"' not in sources} == set()
