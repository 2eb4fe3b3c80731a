"""Both backends have one interface, and no other module asks which of them runs."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pytest

from shmserve import backend, pure
from tests.support import native as native_core
from tests.support.folders import REPOSITORY

if TYPE_CHECKING:
    from shmserve import _core

    _Poller = TypeVar("_Poller")
    _Copier = TypeVar("_Copier")
    _Bytes = npt.NDArray[np.uint8]
    _Writer = TypeVar("_Writer")

    class _Functions(Protocol[_Poller, _Copier, _Writer]):
        """The functions of a backend over its own types."""

        def poll_first(self, pollers: list[_Poller], /) -> int: ...
        def poll_all(self, pollers: list[_Poller], /) -> list[int]: ...
        def same_cpu_writers(self, pollers: list[_Poller], /) -> list[int]: ...
        def sleeping_writers(self, pollers: list[_Poller], /) -> list[int]: ...
        def mark_asleep(self, writers: list[_Writer], /) -> None: ...
        def mark_awake(self, writers: list[_Writer], /) -> None: ...
        def spin(
            self, pollers: list[_Poller], until_ns: int, copiers: list[_Copier] = ..., yields: bool = ..., /
        ) -> int: ...
        def spin_unless_blocked(self, pollers: list[_Poller], until_ns: int, /) -> int: ...
        def bytes_in_flight(self, copiers: list[_Copier], /) -> int: ...
        def abandon(self, copiers: list[_Copier], /) -> None: ...
        def stage(
            self, payload: _Bytes, payload_bytes: int, arena: _Bytes, copier: _Copier | None, write_id: int, /
        ) -> int: ...

    # mypy checks both: each module has these functions, and each pure type could stand where the native one does.
    _native: _Functions[_core.CounterPoller, _core.CutThroughCopier, _core.Slots] = _core
    _pure: _Functions[pure.CounterPoller, pure.CutThroughCopier, pure.Slots] = pure

    class _ClientFastPath(pure.ClientFastPath, _core.ClientFastPath): ...

    class _ServerFastPath(pure.ServerFastPath, _core.ServerFastPath): ...

    class _TreeEncoder(pure.TreeEncoder, _core.TreeEncoder): ...

    class _TreeDecoder(pure.TreeDecoder, _core.TreeDecoder): ...

    class _Semaphore(pure.Semaphore, _core.Semaphore): ...

    class _Slots(pure.Slots, _core.Slots): ...

    class _CounterPoller(pure.CounterPoller, _core.CounterPoller): ...

    class _CutThroughCopier(pure.CutThroughCopier, _core.CutThroughCopier): ...

    class _Histograms(pure.Histograms, _core.Histograms): ...


_STUB = ast.parse((REPOSITORY / "shmserve/_core.pyi").read_text())
#: What the native core says of its own wire, for the test that compares it with layout.py.
_NATIVE_ALONE = {"wire"}
#: Names of the backend that say which of the two it is.
_ASKING = {"NATIVE", "core"}


def parameters(function: ast.FunctionDef) -> list[tuple[str, str, bool]]:
    """Return (name, kind, has a default) of each parameter of a declaration, without `self`."""
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    first_default = len(positional) - len(given.defaults)
    found = [
        (
            each.arg,
            "POSITIONAL_ONLY" if index < len(given.posonlyargs) else "POSITIONAL_OR_KEYWORD",
            index >= first_default,
        )
        for index, each in enumerate(positional)
        if each.arg != "self"
    ]
    return found + ([(given.vararg.arg, "VAR_POSITIONAL", False)] if given.vararg is not None else [])


def declared(name: str) -> dict[str, Any]:
    """Return the public members of a name that the stub declares: parameters for a function, None for an attribute."""
    (found,) = (each for each in _STUB.body if isinstance(each, ast.ClassDef | ast.FunctionDef) and each.name == name)
    if isinstance(found, ast.FunctionDef):
        return {"__call__": parameters(found)}
    members: dict[str, Any] = {
        each.name: None if each.decorator_list else parameters(each)  # the only decorator is `property`
        for each in found.body
        if isinstance(each, ast.FunctionDef)
    }
    members |= {each.target.id: None for each in found.body if isinstance(each, ast.AnnAssign)}  # type: ignore[union-attr]
    return members


def written(name: str) -> dict[str, Any]:
    """Return the same of the pure backend."""
    found = getattr(pure, name)
    if not inspect.isclass(found):
        return {"__call__": signature(found)}
    members = {key: member for key, member in vars(found).items() if key == "__init__" or not key.startswith("_")}
    return {key: signature(member) if inspect.isfunction(member) else None for key, member in members.items()}


def signature(function: Any) -> list[tuple[str, str, bool]]:
    return [
        (each.name, each.kind.name, each.default is not each.empty)
        for each in inspect.signature(function).parameters.values()
        if each.name != "self"
    ]


def public_names() -> set[str]:
    return {
        each.name
        for each in _STUB.body
        if isinstance(each, ast.ClassDef | ast.FunctionDef) and not each.name.startswith("_")
    }


def test_the_pure_backend_has_the_declared_names() -> None:
    assert set(pure.__all__) == public_names() - _NATIVE_ALONE


@pytest.mark.skipif(not native_core.NATIVE, reason="installed without a compiler")
def test_the_native_backend_has_the_declared_names() -> None:
    assert {name for name in dir(native_core.core) if not name.startswith("_")} == public_names()
    for name in public_names():
        native = getattr(native_core.core, name)
        if inspect.isclass(native):
            members = {key for key in vars(native) if not key.startswith("_")}
            assert members == declared(name).keys() - {"__init__"}, name


@pytest.mark.parametrize("name", pure.__all__)
def test_the_pure_backend_has_the_declared_signatures(name: str) -> None:
    assert written(name) == declared(name)


@pytest.mark.parametrize("name", pure.__all__)
def test_the_seam_exports_the_backend_that_runs(name: str) -> None:
    module = native_core.core if backend.BACKEND == "native" else pure

    assert getattr(backend, name) is getattr(module, name)


def imported(tree: ast.Module) -> set[tuple[str, ...]]:
    """Return the path of everything of this project that is imported: its modules, then the name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("shmserve")):
            modules = tuple((node.module or "").removeprefix("shmserve").strip(".").split("."))
            found |= {(*modules, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")[1:]) for alias in node.names if alias.name.startswith("shmserve.")}
    return {tuple(filter(None, path)) for path in found}


def faults(source: str) -> list[str]:
    """Return what a module does that only the seam may do."""
    tree = ast.parse(source)
    paths = imported(tree)
    found = [f"imports {'.'.join(path)}" for path in paths if path[:1] in (("_core",), ("pure",))]
    found += [f"imports {path[1]} from backend" for path in paths if path[:1] == ("backend",) and path[-1] in _ASKING]
    if ("backend",) in paths:
        found.append("imports the backend as a whole")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            if name in ("NATIVE", "COMPILED"):
                found.append(f"asks for {name}")
        if isinstance(node, ast.Compare | ast.If | ast.IfExp | ast.Match):
            tested = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            tested += [node.test] if isinstance(node, ast.If | ast.IfExp) else []
            tested += [node.subject] if isinstance(node, ast.Match) else []
            found += ["tests BACKEND" for each in tested if isinstance(each, ast.Name) and each.id == "BACKEND"]
    return found


def modules() -> list[Path]:
    found = [path for folder in ("shmserve", "client", "daemon") for path in (REPOSITORY / folder).rglob("*.py")]
    inside = {REPOSITORY / "shmserve/backend.py", *(REPOSITORY / "shmserve/pure").glob("*.py")}
    return sorted(set(found) - inside)


def test_no_module_outside_the_seam_asks_which_backend_runs() -> None:
    asking = {path.relative_to(REPOSITORY).as_posix(): faults(path.read_text()) for path in modules()}

    assert {path: found for path, found in asking.items() if found} == {}


@pytest.mark.parametrize(
    "source",
    [
        "from .backend import NATIVE",
        "from shmserve.backend import core as c",
        "from . import _core",
        "from shmserve._core import Slots",
        "import shmserve._core",
        "from .pure import Slots",
        "from .pure.slots import Slots",
        "import shmserve.pure",
        "from . import backend",
        "from shmserve import backend as b",
        "import shmserve.backend",
        "x = anything.NATIVE",
        "from .backend import BACKEND\nif BACKEND == 'native': pass",
        "from .backend import BACKEND\nx = 1 if BACKEND else 2",
    ],
)
def test_asking_is_found(source: str) -> None:
    assert faults(source)


def test_using_the_seam_is_not_asking() -> None:
    assert not faults("from .backend import BACKEND, Slots, poll_first\nprint(BACKEND, Slots)")
