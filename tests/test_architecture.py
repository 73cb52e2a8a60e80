"""The rules of ARCHITECTURE.md, held by test: arrows, torch-freeness, names, length."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("training", "export", "runtime", "benchmarks")
MAX_LINES = 400

ALLOWED_OF_OURS = {
    "training": ("training",),
    "runtime": ("runtime",),
    "export": (
        "export",
        "training",
        "runtime.contract",
        "runtime.preprocess",
        "runtime.sessions",
        "runtime.engines",
        "runtime.tasks",
    ),
    "benchmarks": ("benchmarks", "runtime", "training.data", "training.metrics"),
}
FORBIDDEN_ANYWHERE = {
    "runtime": ("torch", "torchvision", "onnx", "onnxscript", "timm"),
    "benchmarks": ("torch", "torchvision", "onnx", "timm"),
    "training": ("onnx", "onnxscript", "onnxruntime", "openvino", "tensorrt"),
}
RUNTIME_AT_IMPORT = {"numpy"} | set(sys.stdlib_module_names)
DATA_FORBIDDEN_AT_IMPORT = ("torch", "torchvision", "timm", "accelerate")
DRAWERS = {"utils", "util", "helpers", "helper", "misc", "common", "core"}


def modules(package: str) -> list[Path]:
    return sorted(p for p in (ROOT / package).rglob("*.py") if "__pycache__" not in p.parts)


ALL_MODULES = [path for package in PACKAGES for path in modules(package)]


def identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.AST, *, only_at_import: bool = False) -> list[tuple[str, int]]:
    """(module, line) of each import, or of those that run when the module is imported."""
    found: list[tuple[str, int]] = []

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if only_at_import and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                if not only_at_import:
                    walk(child)
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"relative import in line {child.lineno}"
                names = [f"{child.module}.{alias.name}" for alias in child.names]
                found.extend((name, child.lineno) for name in names)
            walk(child)

    walk(tree)
    return found


def is_under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


@pytest.mark.parametrize("path", ALL_MODULES, ids=identify)
def test_module_imports_only_what_the_arrows_allow(path: Path):
    package = path.relative_to(ROOT).parts[0]
    for name, line in imports(ast.parse(path.read_text())):
        if is_under(name, PACKAGES):
            assert is_under(name, ALLOWED_OF_OURS[package]), f"{path}:{line} imports {name}"
        assert not is_under(name, FORBIDDEN_ANYWHERE.get(package, ())), f"{path}:{line}: {name}"


@pytest.mark.parametrize("path", modules("runtime"), ids=identify)
def test_runtime_module_imports_numpy_alone_when_it_is_imported(path: Path):
    for name, line in imports(ast.parse(path.read_text()), only_at_import=True):
        top = name.split(".")[0]
        assert top == "runtime" or top in RUNTIME_AT_IMPORT, f"{path}:{line} imports {name}"


@pytest.mark.parametrize(
    "path", [*modules("training/data"), *modules("training/metrics")], ids=identify
)
def test_training_data_and_metrics_do_without_torch_at_import(path: Path):
    for name, line in imports(ast.parse(path.read_text()), only_at_import=True):
        assert not is_under(name, DATA_FORBIDDEN_AT_IMPORT), f"{path}:{line} imports {name}"


@pytest.mark.parametrize("package", ["runtime", "training.data", "training.metrics"])
def test_package_imports_whole_where_torch_is_absent(package: str):
    code = f"""
import importlib, pkgutil, sys
for name in ("torch", "torchvision", "onnx", "timm"):
    sys.modules[name] = None
package = importlib.import_module({package!r})
for module in pkgutil.walk_packages(package.__path__, {package!r} + "."):
    importlib.import_module(module.name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", ALL_MODULES, ids=identify)
def test_module_is_short_enough_to_read_in_one_sitting(path: Path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", ALL_MODULES, ids=identify)
def test_module_is_not_named_as_a_drawer(path: Path):
    assert path.stem not in DRAWERS


def dependency_modules() -> set[str]:
    """Top-level module names of everything that pyproject.toml names, where installed."""
    text = (ROOT / "pyproject.toml").read_text()
    wanted = {re.split(r"[><=\[]", item)[0] for item in re.findall(r'"([\w-]+[><=\[][^"]*)"', text)}
    names: set[str] = {"torch", "onnx", "tensorrt", "openvino", "av", "cv2", "cuda"}
    for distribution in importlib.metadata.distributions():
        if (distribution.metadata["Name"] or "").lower() in wanted:
            names |= {
                n.split("/")[0] for n in (distribution.read_text("top_level.txt") or "").split()
            }
    return {n for n in names if n and not n.startswith("_")}


@pytest.mark.parametrize(
    "path", [p for p in ALL_MODULES if len(p.relative_to(ROOT).parts) == 2], ids=identify
)
def test_module_beside_a_script_shadows_nothing(path: Path):
    assert path.stem not in sys.stdlib_module_names
    assert path.stem not in dependency_modules()


def test_no_package_folder_beside_a_script_shadows_a_dependency():
    for package in PACKAGES:
        for folder in (ROOT / package).iterdir():
            if folder.is_dir():
                assert folder.name not in dependency_modules() | set(sys.stdlib_module_names)


def registered() -> dict[str, str]:
    from training.models import REGISTRY

    return REGISTRY


def test_every_model_file_is_registered_under_its_own_name():
    folders = [p for p in (ROOT / "training" / "models").iterdir() if p.is_dir()]
    files = {p.stem for f in folders for p in f.glob("*.py") if p.stem != "__init__"}
    assert files == set(registered())
    for name, place in registered().items():
        assert place.split(":")[0].rsplit(".", 1)[1] == name


def test_every_registered_model_is_what_its_entry_says():
    from training.models.base import Model

    for place in registered().values():
        module, attribute = place.split(":")
        assert issubclass(getattr(importlib.import_module(module), attribute), Model)


@pytest.mark.parametrize(
    "path", [p for p in ALL_MODULES if p.relative_to(ROOT).parts[0] != "training"], ids=identify
)
def test_only_training_knows_a_models_name(path: Path):
    tree = ast.parse(path.read_text())
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            is_help = "such as" in node.value or "example" in node.value.lower()
            if id(node) not in documented and not is_help:
                names = [node.value]
        elif isinstance(node, ast.Name):
            names = [node.id]
        for model in registered():
            assert not any(model in text.lower() for text in names), f"line {node.lineno}: {model}"


def test_every_task_module_has_the_name_of_a_task_in_the_contract():
    from runtime.contract.outputs import TASKS

    for package in ("training", "export", "runtime"):
        names = {m.name for m in pkgutil.iter_modules([str(ROOT / package / "tasks")])}
        assert names <= set(TASKS), f"{package}/tasks"


def scripts() -> list[Path]:
    return [p for p in ALL_MODULES if '__name__ == "__main__"' in p.read_text()]


@pytest.mark.parametrize("path", scripts(), ids=identify)
def test_script_puts_the_root_first_in_the_path_and_not_its_own_folder(path: Path):
    text = path.read_text()
    assert "if not __package__:" in text
    assert "sys.path[0] = str(Path(__file__).resolve().parents[1])" in text


@pytest.mark.parametrize("path", scripts(), ids=identify)
def test_script_explains_itself_when_asked(path: Path, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, str(path), "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_gpu_and_cpu_extras_never_bring_both_wheels_of_onnx_runtime():
    text = (ROOT / "pyproject.toml").read_text()
    for name in ("gpu", "rtx"):
        extra = re.search(rf"^{name} = \[(.*?)\]", text, re.M | re.S).group(1)
        assert '"onnxruntime>' not in extra


def test_every_dependency_is_bounded_above_and_below():
    text = (ROOT / "pyproject.toml").read_text()
    section = text.split("[tool.")[0]
    for item in re.findall(r'"([\w.-]+(?:\[\w+\])?[><=!~][^"]*)"', section):
        if not item.startswith(("kestrel", ">=")):
            assert ">=" in item, item
            assert "<" in item, item
