"""Promises about the tree as a whole: public names, what an import loads, file names, pins, documents."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import runner

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("runner", "workers", "tasks")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "runner").rglob("*.md")])
ORACLES = {"vectorbt", "backtesting", "empyrical"}

HEAVY = ("numba", "aiohttp", "pandas", "plotly", "pyarrow", "talib", "celery", "workers", "tasks")
HEAVY_FOR_A_CLIENT = ("numba", "aiohttp", "plotly", "talib", "workers", "tasks")


def loaded_by(code: str, names: tuple[str, ...]) -> set[str]:
    """Which of the modules `names` a fresh process has loaded after running `code`."""
    report = f"import sys\n{code}\nprint(*(name for name in {names!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def imported_modules(path: Path) -> set[str]:
    """Top-level names of everything a file imports absolutely, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


# The public door


def test_public_names_are_sorted_and_unique() -> None:
    assert runner.__all__ == sorted(set(runner.__all__))


@pytest.mark.parametrize("name", runner.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(runner, name) is not None
    assert name in dir(runner)


def test_an_unknown_name_is_an_attribute_error_that_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'swep'.*sweep"):
        runner.__getattr__("swep")


def test_the_console_script_is_installed() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="runner")
    assert callable(script.load())
    assert any(Path(sys.executable).parent.glob("runner*"))


# What an import costs


def test_importing_runner_loads_nothing_heavy() -> None:
    assert loaded_by("import runner", HEAVY) == set()


def test_naming_data_parameters_and_costs_loads_nothing_heavy() -> None:
    names = "runner.Bars, runner.Execution, runner.RunnerError, runner.grid(fast=[1]), runner.uniform(0, 1)"
    assert loaded_by(f"import runner\n{names}", HEAVY) == set()


def test_a_client_loads_neither_engine_nor_workers() -> None:
    code = "import runner\nrunner.Client, runner.Results, runner.attach, runner.connect"
    assert loaded_by(code, HEAVY_FOR_A_CLIENT) == set()


# The files


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_shadows_the_standard_library_or_what_it_imports(path: Path) -> None:
    name = path.stem if path.stem != "__init__" else path.parent.name
    assert name not in sys.stdlib_module_names - {"__main__"}
    assert name not in imported_modules(path) - set(PACKAGES)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_packages_never_import_an_oracle(path: Path) -> None:
    assert not imported_modules(path) & ORACLES


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_shipped() -> None:
    on_disk = {".".join(path.parent.relative_to(ROOT).parts) for path in SOURCES if path.name == "__init__.py"}
    assert set(pyproject()["tool"]["setuptools"]["packages"]) == on_disk


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_that_is_not_python_is_shipped(package: str) -> None:
    """An editable install finds files that a wheel would lack."""
    patterns = pyproject()["tool"]["setuptools"]["package-data"][package]
    shipped = {path for pattern in patterns for path in (ROOT / package).glob(pattern)}
    on_disk = {path for path in (ROOT / package).rglob("*") if path.is_file()}
    assert {path for path in on_disk - shipped if path.suffix not in {".py", ".pyc", ".nbi", ".nbc", ".md"}} == set()


# The pins


def pins() -> dict[str, str]:
    """The version constraints.txt names for each package; fails on any line that is not a plain pin."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    plain = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!]+)", line) for line in lines if not line.startswith("#")]
    assert None not in plain, "constraints.txt holds name==version lines only: no addresses, paths or options"
    return {canonicalize_name(pin[1]): pin[2] for pin in plain if pin}


def requirements() -> list[Requirement]:
    """Everything pyproject.toml asks for, all extras included."""
    project = pyproject()["project"]
    groups = (project["dependencies"], *project["optional-dependencies"].values())
    return [Requirement(line) for group in groups for line in group]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_to_a_version_it_allows(requirement: Requirement) -> None:
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


# The documents


def code_blocks(language: str) -> list[tuple[str, str]]:
    """Every fenced block of a language in the documents, as (document:line, code)."""
    blocks = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for block in re.finditer(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, block.start()) + 1
            blocks.append((f"{path.relative_to(ROOT)}:{line}", block[1]))
    return blocks


PYTHON_BLOCKS = [pytest.param(code, id=where) for where, code in code_blocks("python")]


def test_the_readme_shows_a_first_sweep() -> None:
    assert any(where.startswith("README.md") and "client.sweep(" in code for where, code in code_blocks("python"))


@pytest.mark.parametrize("code", PYTHON_BLOCKS)
def test_documented_python_compiles(code: str) -> None:
    compile(code, "document", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("code", PYTHON_BLOCKS)
def test_documented_names_exist(code: str) -> None:
    """`runner.x`, `client.x`, `sweep.x`, `result.x` and `bars.x` in a document are real."""
    known = {
        "runner": runner,
        "client": runner.Client,
        "sweep": runner.SweepHandle,
        "result": runner.Results,
        "bars": runner.Bars,
        "prices": runner.Bars,
    }
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known:
            assert hasattr(known[node.value.id], node.attr), f"{node.value.id}.{node.attr}"


def documented_make_targets() -> list[str]:
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    return sorted(set(re.findall(r"(?:^|`)make ([a-z]+)", text, flags=re.MULTILINE)))


@pytest.mark.parametrize("target", documented_make_targets())
def test_documented_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_link_to_files_that_exist(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []
