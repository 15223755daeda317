"""The budgets that keep the code readable: lengths, rings, types, names, forbidden calls, start-up time."""

from __future__ import annotations

import ast
import importlib.util
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "uplift"
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

DATA_TABLES: set[str] = set()
"""Files that are long because they are tables."""
OPTIONAL_IMPORTS = {"trl", "xgrammar", "triton", "liger_kernel", "cut_cross_entropy", "flash_attn"}
OPTIONAL_IMPORTS |= {"llama_cpp", "onnx", "onnxruntime", "executorch"}  # the extra `export`
OPTIONAL_IMPORTS |= {"datasets", "ftfy", "lxml", "py3langid", "pypdf", "trafilatura"}  # the extra `data`
"""Declared optional dependencies: the only packages that may be imported inside a function."""
WRITERS = {"core/storage.py", "core/disk.py", "core/lock.py", "core/run.py", "data/clean/cluster.py"}
"""The files that write to disk; the last one to wherever datatrove writes."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def module_of(path: Path) -> str:
    parts = ("uplift", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def functions() -> Iterator[tuple[str, Function]]:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                yield f"{name_of(path)}:{node.lineno} {node.name}", node


def lines_of(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_functions_are_short() -> None:
    lengths = {name: lines_of(node) for name, node in functions()}
    long = {name: length for name, length in lengths.items() if length > 80}
    assert not long, f"functions over 80 lines: {long}"
    p90 = statistics.quantiles(lengths.values(), n=10)[-1]
    print(f"{len(lengths)} functions, p90 {p90:.0f} lines, longest {max(lengths.values())}")
    assert p90 <= 30, f"p90 of function length is {p90:.0f} lines"


def test_files_are_short() -> None:
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    long = {name: length for name, length in lengths.items() if length > 500 and name not in DATA_TABLES}
    assert not long, f"files over 500 lines: {long}"


# -- imports -----------------------------------------------------------------------------------------------------------
def imports_of(path: Path) -> set[str]:
    """Modules of Uplift that a file imports anywhere: at the top, inside functions, for type checking."""
    modules = {module_of(each) for each in FILES}
    found: set[str] = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: write the full module name"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in modules else node.module or "")
    return {name for name in found if name in modules}


def test_there_are_no_import_rings() -> None:
    graph = {module_of(path): imports_of(path) - {module_of(path)} for path in FILES}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"import ring: {' -> '.join([*way[way.index(module) :], module])}"
        if module not in done:
            for below in sorted(graph[module]):
                visit(below, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


LAYERS = ["core", "data", "model", "learn", "techniques", "evaluate", "study", "serve", "verbs", "web", "cli"]


def test_a_room_imports_only_from_rooms_before_it() -> None:
    wrong = []
    for path in FILES:
        room = path.relative_to(SOURCE).parts[0]
        for imported in imports_of(path):
            other = imported.split(".")[1] if "." in imported else ""
            if room in LAYERS and other in LAYERS and LAYERS.index(other) > LAYERS.index(room):
                wrong.append(f"{name_of(path)} imports {imported}")
            if other == "testing" and room != "testing" or room == "testing" and other in {"cli", "web"}:
                wrong.append(f"{name_of(path)} imports {imported}")
    assert not wrong, wrong


def test_only_optional_packages_are_imported_inside_functions() -> None:
    wrong = []
    for name, function in functions():
        for node in ast.walk(function):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                wrong += [f"{name}: {module}" for module in names if module.split(".")[0] not in OPTIONAL_IMPORTS]
    assert not wrong, wrong


# -- names, types, docs ------------------------------------------------------------------------------------------------
def test_no_file_is_a_drawer() -> None:
    drawers = {"utils", "util", "misc", "helpers", "helper", "common", "stuff"}
    assert not [name_of(path) for path in FILES if {*path.with_suffix("").parts} & drawers]


def test_public_functions_are_typed_and_documented() -> None:
    wrong = []
    for path, tree in TREES.items():
        for node, owner in _public(tree):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            untyped = [each.arg for each in arguments if each.annotation is None and each.arg not in {"self", "cls"}]
            where = f"{name_of(path)}:{node.lineno} {owner}{node.name}"
            if untyped or node.returns is None:
                wrong.append(f"{where}: types of {untyped or 'the result'} are missing")
            if not ast.get_docstring(node) and not node.name.startswith("__"):
                wrong.append(f"{where}: no docstring")
        if not ast.get_docstring(tree) and tree.body:
            wrong.append(f"{name_of(path)}: no docstring")
    assert not wrong, wrong


def _public(tree: ast.Module) -> Iterator[tuple[Function, str]]:
    for node in tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node, ""
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from ((each, f"{node.name}.") for each in node.body if isinstance(each, Function) and each.name[0] != "_")


# -- forbidden calls ---------------------------------------------------------------------------------------------------
FORBIDDEN_CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "torch.load": "reads pickles",
    "torch.save": "writes pickles; use safetensors",
    "yaml.load": "builds objects",
    "os.system": "is a shell",
    "os.popen": "is a shell",
    "jinja2.Environment": "templates of strangers need the sandbox",
    "Environment": "templates of strangers need the sandbox",
}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
FORBIDDEN_ARGUMENTS = {"shell", "trust_remote_code", "allow_pickle"}
WRITING_METHODS = {"write_text", "write_bytes", "touch"}


def forbidden_in(path: Path, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        line = f"{path.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"{line}: imports {name}" for name in names if name.split(".")[0] in FORBIDDEN_MODULES)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in FORBIDDEN_CALLS:
            yield f"{line}: {called} {FORBIDDEN_CALLS[called]}"
        for keyword in node.keywords:
            harmless = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg in FORBIDDEN_ARGUMENTS and not harmless:
                yield f"{line}: {keyword.arg} other than False"
        if _writes(node, called):
            yield f"{line}: {called} writes a file"


def _writes(node: ast.Call, called: str) -> bool:
    if called.rpartition(".")[2] in WRITING_METHODS:
        return True
    if called.rpartition(".")[2] not in {"open", "fdopen", "NamedTemporaryFile"} or called in {"os.open", "disk.open"}:
        return False
    arguments = [*node.args[called == "open" :], *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
    return any(
        isinstance(each, ast.Constant)
        and isinstance(each.value, str)
        and re.fullmatch(r"[rwaxbt+]*[wax+][rwaxbt+]*", each.value)
        for each in arguments
    )


def test_nothing_forbidden_is_called() -> None:
    found = []
    for path, tree in TREES.items():
        name = name_of(path)
        found += [f"{name} {what}" for what in forbidden_in(path, tree) if name not in WRITERS or "writes a file" not in what]
    assert not found, found


@pytest.mark.parametrize(
    "text",
    [
        "open('x', 'w')",
        "Path('x').open('ab')",
        "open('x', mode='r+')",
        "Path('x').write_text('a')",
        "torch.load('x')",
        "import pickle",
        "from yaml import safe_load",
        "eval('1')",
        "subprocess.run('ls', shell=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=flag)",
        "jinja2.Environment()",
    ],
)
def test_the_search_for_forbidden_calls_finds_them(text: str) -> None:
    assert list(forbidden_in(Path("x.py"), ast.parse(text)))


def test_the_search_lets_harmless_calls_pass() -> None:
    harmless = "open('x')\nopen('x', 'rb')\nmodel.eval()\nf(trust_remote_code=False)\nPath('w').open()"
    assert not list(forbidden_in(Path("x.py"), ast.parse(harmless)))


def test_the_repository_speaks_of_nothing_but_the_project() -> None:
    """No registry host and no local path is written into the sources or the documents."""
    foreign = re.compile(r"https?://[^\s)\"']*(pypi|pythonhosted|npmjs|artifact|index-url)", re.IGNORECASE)
    folders = ("src", "docs", "recipes", "bench", "tests", ".ci")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".md", ".yaml", ""}]
    wrong = []
    for path in [*paths, *ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]:
        if path.is_file() and path != Path(__file__).resolve():
            hit = foreign.search(path.read_text(encoding="utf-8", errors="replace"))
            wrong += [f"{path.relative_to(ROOT)}: {hit.group()}"] if hit else []
    assert not wrong, wrong


# -- start-up ----------------------------------------------------------------------------------------------------------
HEAVY = ("torch", "transformers", "peft", "datasets", "sklearn", "numpy")


def quickest(code: str, tries: int = 3) -> tuple[float, str]:
    """Least seconds of a fresh interpreter running ``code``, and what it printed: other programs only add time."""
    seconds, text = float("inf"), ""
    for _ in range(tries):
        started = time.perf_counter()
        text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        seconds = min(seconds, time.perf_counter() - started)
    return seconds, text


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("import uplift", "import uplift"),
        ("uplift --help", "from uplift.cli.main import main; assert main(['--help']) == 0"),
        ("uplift --version", "from uplift.cli.main import main; assert main(['--version']) == 0"),
    ],
)
def test_the_start_is_quick_and_light(what: str, code: str) -> None:
    seconds, text = quickest(f"{code}\nimport sys\nprint('HEAVY', [name for name in {HEAVY} if name in sys.modules])")
    print(f"{what}: {seconds:.3f} s")
    assert text.strip().endswith("HEAVY []"), text
    assert seconds < 1.0, f"{what} took {seconds:.2f} s"


def test_the_core_needs_no_torch() -> None:
    modules = [module_of(path) for path in FILES if module_of(path).startswith("uplift.core.")]
    code = f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\nprint('torch' in sys.modules)"
    assert quickest(code, tries=1)[1].strip() == "False"


def test_torchvision_is_absent() -> None:
    assert importlib.util.find_spec("torchvision") is None, "a torchvision that does not match torch breaks transformers"
