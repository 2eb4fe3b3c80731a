"""Imports of a package's modules, which take precedence over others of the same name for the package's own code.

An engine has imported much of the standard library and torch before it imports a policy, and the interpreter looks in
`sys.modules` first, so `import queue` would never find a package's `queue.py`. Other code, however, must still get the
standard library's `queue`. Modules with such a conflict, and only those, therefore get a longer name, under which their
classes are also pickled: the name of the package's directory, a dot, the module's name. The short name resolves to them
only in imports by the package's own code.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from shmserve.errors import ModelPackageError


def import_entry(path: Path, module_name: str) -> ModuleType:
    """Import a module of the package at `path`; its code can import the package's other modules by their short names.

    Raises ModelPackageError if the module does not exist; exceptions of the module's own code propagate.
    """
    file = path / Path(*module_name.split("."))
    if not any(file.with_suffix(ending).exists() for ending in (".py", "")):
        raise ModelPackageError(f"{path} has no module {module_name} ({module_name.replace('.', '/')}.py)")
    # This process serves one package and ends with it, so the directory may come first in sys.path: a later version
    # never sees these modules.
    sys.path.insert(0, str(path))
    sys.dont_write_bytecode = True  # the package is content addressed
    sys.argv = [str(file.with_suffix(".py"))]  # as for a script; the engine's own arguments are of no use to it
    top = module_name.partition(".")[0]
    doubled = {name for name in {*_names(path), top} if name in sys.modules or name in sys.stdlib_module_names}
    if not doubled:
        return importlib.import_module(module_name)
    return _Doubled(path, doubled).module(module_name)


def _names(path: Path) -> set[str]:
    """Return the names of the package's top-level modules."""
    endings = (".py", *EXTENSION_SUFFIXES)
    files = {entry.name.removesuffix(ending) for entry in path.iterdir() for ending in endings if entry.is_file()}
    return {*files, *(entry.parent.name for entry in path.glob("*/__init__.py"))}


class _Doubled(MetaPathFinder):
    """Import hook for the package's modules; `names` are those that conflict with other modules."""

    def __init__(self, path: Path, names: set[str]) -> None:
        self._path = str(path)
        self._names = names
        prefix = path.name.replace(".", "_")
        self._prefix = prefix if prefix not in sys.modules else f"{prefix}_package"
        self._builtins = {**vars(builtins), "__import__": self._importer(builtins.__import__)}
        package = ModuleType(self._prefix)
        package.__path__ = [self._path]
        sys.modules[self._prefix] = package
        sys.path.append(str(path.parent))  # processes that the policy spawns find them there
        sys.meta_path.insert(0, self)

    def module(self, name: str) -> ModuleType:
        return importlib.import_module(self._full(name))

    def _full(self, name: str) -> str:
        return f"{self._prefix}.{name}" if name.partition(".")[0] in self._names else name

    def _importer(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """Return the `__import__` function for the package's own code."""

        def importer(
            name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] | None = (), level: int = 0
        ) -> Any:
            full = self._full(name)
            if level or full == name:
                return plain(name, globals, locals, fromlist, level)
            found = plain(full, globals, locals, fromlist, 0)
            return found if fromlist else sys.modules[self._full(name.partition(".")[0])]

        return importer

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is None and fullname in self._names:  # by its short name, so not from the package's code
            if fullname in sys.builtin_module_names:
                return None
            return PathFinder.find_spec(fullname, [place for place in sys.path if place != self._path])
        places = [self._path] if path is None else [place for place in path if Path(place).is_relative_to(self._path)]
        spec = PathFinder.find_spec(fullname, places) if places else None
        if spec is None or not isinstance(spec.loader, SourceFileLoader):
            return None
        spec.loader = _Loader(spec.loader.name, spec.loader.path, self._builtins)
        return spec


class _Loader(SourceFileLoader):
    """Loader that runs a module of the package with these builtins, which include its `__import__`."""

    def __init__(self, name: str, path: str, builtins_: dict[str, Any]) -> None:
        super().__init__(name, path)
        self._builtins = builtins_

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = self._builtins
        super().exec_module(module)
