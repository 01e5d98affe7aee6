"""The rules of docs/architecture.md that a reader of the code relies on, read from the code itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gesso
from gesso.cli import VERBS

ROOT = Path(gesso.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
FRAMEWORKS = {"torch", "diffusers", "peft", "transformers", "accelerate", "mindspore", "mindone"}
ENGINES = sorted(path.parent.name for path in ROOT.glob("engines/*/engine.py"))
LONGEST_FILE = 400
LONGEST_FUNCTION = 60

LOWEST = ("arrays", "errors", "events", "keys", "objective", "rates")
DATA = ("data", "families")
MIDDLE = ("checkpoint", "formats", "loop", "report", "results")
UPPER = ("cli", "commands", "demo", "generate", "job", "run")


def module(path: Path) -> str:
    """gesso/data/plan.py → gesso.data.plan."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file names in an import, wherever in the file, with its line; `from a import b` is a.b."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def under(name: str, *parts: str) -> bool:
    """Whether the dotted `name` is gesso.<part> or below it, for any of the parts."""
    return any(name == f"gesso.{part}" or name.startswith(f"gesso.{part}.") for part in parts)


def of(*parts: str) -> list[Path]:
    found = [path for path in FILES if under(module(path), *parts)]
    assert len(found) >= len(parts), f"{parts} are no longer all there"
    return found


def said(path: Path, line: int, what: str) -> str:
    return f"{path.relative_to(ROOT.parent)}:{line} {what}"


def test_a_framework_is_imported_by_its_engine_alone() -> None:
    wrong = [
        said(path, line, name)
        for path in FILES
        if not under(module(path), "engines.torch", "engines.mindspore")
        for name, line in imports(path)
        if name.split(".")[0] in FRAMEWORKS
    ]
    assert wrong == []
    assert any(name.startswith("torch.") for path in of("engines.torch") for name, _ in imports(path))


def test_a_framework_is_not_smuggled_in_by_name() -> None:
    """import_module takes a string; none outside an engine may name a framework."""
    wrong = []
    for path in FILES:
        if under(module(path), "engines.torch", "engines.mindspore"):
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
                texts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
                wrong += [said(path, node.lineno, t) for t in map(str, texts) if t.split(".")[0] in FRAMEWORKS]
    assert wrong == []


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        (LOWEST, (*DATA, "engines", *MIDDLE, *UPPER)),
        (DATA, ("engines", *MIDDLE, *UPPER)),
        (("engines.engine",), (*(f"engines.{engine}" for engine in ENGINES), *MIDDLE, *UPPER)),
        (MIDDLE, (*(f"engines.{engine}" for engine in ENGINES), *UPPER)),
        (("schema", "storage"), (*DATA, "engines", *MIDDLE, *UPPER)),
        (("job", "run", "generate"), ("cli", "commands", "demo")),
        (
            ("engines.torch", "engines.mindspore", "engines.reference"),
            ("run", "job", "loop", "cli", "commands", "results", "checkpoint"),
        ),
    ],
    ids=lambda names: "-".join(names)[:24],
)
def test_imports_run_one_way(lower: tuple[str, ...], upper: tuple[str, ...]) -> None:
    wrong = [said(path, line, name) for path in of(*lower) for name, line in imports(path) if under(name, *upper)]
    assert wrong == []


def test_the_lowest_layer_stands_on_itself() -> None:
    allowed = {*sys.stdlib_module_names, "numpy"}
    wrong = [
        said(path, line, name)
        for path in of(*LOWEST)
        for name, line in imports(path)
        if not under(name, *LOWEST) and name.split(".")[0] not in allowed
    ]
    assert wrong == []


def test_a_concrete_engine_is_known_by_name_only() -> None:
    assert {"torch", "reference"} <= set(ENGINES)
    wrong = [
        said(path, line, name)
        for engine in ENGINES
        for path in FILES
        if not under(module(path), f"engines.{engine}")
        for name, line in imports(path)
        if under(name, f"engines.{engine}")
    ]
    assert wrong == []


def test_files_and_functions_fit_the_eye() -> None:
    wrong = []
    for path in FILES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONGEST_FILE:
            wrong.append(said(path, lines, "is the last line"))
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    wrong.append(said(path, node.lineno, f"{node.name} has {length} lines"))
    assert wrong == []


def test_every_file_says_what_it_is() -> None:
    mute = [
        path.name
        for path in [*FILES, *Path(__file__).parent.glob("*.py")]
        if (parsed := tree(path)).body and not ast.get_docstring(parsed)
    ]
    assert mute == []


def test_nothing_executes_what_it_reads() -> None:
    """No pickle, no eval, no shell, no code of a model's own."""
    modules = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    calls = {"eval", "exec", "os.system", "os.popen", "torch.load", "subprocess.getoutput"}
    keywords = {"shell", "trust_remote_code", "allow_pickle"}
    wrong = []
    for path in FILES:
        wrong += [said(path, line, name) for name, line in imports(path) if name.split(".")[0] in modules]
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                wrong += [said(path, node.lineno, name)] if name in calls else []
                wrong += [
                    said(path, node.lineno, f"{word.arg}={ast.unparse(word.value)}")
                    for word in node.keywords
                    if word.arg in keywords and ast.unparse(word.value) != "False"
                ]
            elif isinstance(node, ast.Constant) and node.value == "trust_remote_code":
                wrong.append(said(path, node.lineno, "trust_remote_code"))
    assert wrong == []


def test_help_needs_no_framework() -> None:
    """`import gesso`, `gesso --help` and the help of each verb, in a process of their own."""
    code = (
        "import sys, gesso\n"
        f"frameworks = {FRAMEWORKS!r}\n"
        "first = frameworks & set(sys.modules)\n"
        "from gesso.cli import main\n"
        f"codes = [main(each) for each in [['--help'], *([verb, '--help'] for verb in {list(VERBS)!r})]]\n"
        "print('LOADED', sorted(first), sorted(frameworks & set(sys.modules)), set(map(int, codes)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines()[-1:] == ["LOADED [] [] {0}"], done.stdout + done.stderr
