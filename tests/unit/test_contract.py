"""Every plugin keeps the contract of cni/contract.py, and its package keeps its names apart."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import cni
from cni.call import Verbs
from cni.contract import PluginModule
from cni.dispatch import TABLE, WINDOWS
from cni.protocol.config import PluginConf

ROOT = Path(cni.__file__).parent
VERBS = Verbs._fields[1:]
MODULES = sorted({plugin.module for plugin in (*TABLE.values(), *WINDOWS.values())})
# A plugin of several files: its package is imported, and each submodule becomes an attribute of it.
PACKAGES = sorted(path.parent for path in ROOT.rglob("plugin.py"))


def test_the_contract_has_the_verbs_that_are_looked_up() -> None:
    drawn = {name for name in vars(PluginModule) if not name.startswith("_")}
    assert drawn == {"Conf", *VERBS}


@pytest.mark.parametrize("module", MODULES)
def test_a_plugin_keeps_the_contract(module: str) -> None:
    plugin = importlib.import_module(module)
    assert issubclass(plugin.Conf, PluginConf)
    assert any(hasattr(plugin, verb) for verb in VERBS)
    for verb in VERBS:
        function = getattr(plugin, verb, None)
        if function is None:
            continue
        wanted = inspect.signature(getattr(PluginModule, verb))
        found = inspect.signature(function)
        names = [name.lstrip("_") for name in found.parameters]
        assert names == list(wanted.parameters)[1:], verb
        assert found.return_annotation == wanted.return_annotation, verb


def names_of(tree: ast.Module) -> set[str]:
    """The names at the top of a module: functions, classes, variables, imports."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def of_the_package(tree: ast.Module, package: str) -> set[str]:
    """What a module imports of its own package by `from . import name`."""
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1 and not node.module
        for alias in node.names
    } | {package}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_no_submodule_bears_the_name_of_something_else(package: Path) -> None:
    """In the package a submodule would take the place of a verb or global with its name."""
    submodules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    assert not submodules & set(VERBS)
    tree = ast.parse((package / "plugin.py").read_text())
    others = names_of(tree) - of_the_package(tree, package.name)
    assert not submodules & others
    init = ast.parse((package / "__init__.py").read_text())
    assert [type(node) for node in init.body] == [ast.Expr], "__init__.py is a docstring"
