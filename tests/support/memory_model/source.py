"""Memory orders that the source has: each function with atomic operations or fences, and these in their order.

`FUNCTIONS` is what the models are built with. `differences` reads the source and returns each place where it is not what
this table says, so a weaker order in the source, another sequence of stores, or a new atomic operation is found.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from .machine import Order

#: Functions of native/ by name: their operations in the order of the text, `order kind place`, and copies of bytes.
FUNCTIONS: Mapping[str, tuple[str, ...]] = {
    # ring.c
    "ring_publish": ("relaxed store words", "relaxed store processor", "release store counter"),
    "ring_copy_request": ("acquire fence", "relaxed load words"),
    "ring_cancel": ("relaxed store cancelled", "seq_cst fence"),
    "ring_take": ("relaxed load attempts", "relaxed store attempts", "release store taken", "seq_cst fence"),
    "ring_is_taken": ("acquire load taken",),
    "ring_complete": (
        "relaxed store words",
        "relaxed store processor",
        "release store sequence",
        "release store counter",
        "relaxed load counter",  # the argument of that store
    ),
    "ring_copy_reply": ("acquire load sequence", "relaxed load words"),
    # cut_through.c
    "announce_write": (
        "relaxed load write_id",
        "relaxed store written_bytes",
        "relaxed store processor",
        "release store write_id",
        "seq_cst fence",
    ),
    "announce_progress": ("release store written_bytes",),
    "cut_through_advance": (
        "acquire load write_id",
        "acquire load written_bytes",
        "copy",
        "acquire fence",
        "relaxed load write_id",
    ),
    # waiting.h and counter_poller.c
    "has_moved": ("acquire load counter",),
    "poller_load": ("acquire load counter",),
}
#: Functions with an order that no model has, and why none is needed.
UNMODELLED: Mapping[str, str] = {
    "cut_through_is_due": "a hint: how long the engine polls for a write in progress",
    "clock_wait": "words of one process",
    "await_head": "loads the counter as poller_load does; ring_copy_reply reads what was counted",
}
#: The functions of atomics.h, which name the orders of the others.
WRAPPERS: Mapping[str, str] = {
    "load_relaxed": "relaxed load word",
    "load_acquire": "acquire load word",
    "store_relaxed": "relaxed store word",
    "store_release": "release store word",
    "fence_acquire": "acquire fence",
    "fence_full": "seq_cst fence",
}
#: Functions of Python with the steps that have an order, in the order of the text: patterns, `fence` for a fence of
#: shmserve/fence.py, which `_order` is too, and `full_fence` for one that is a fence on every processor.
PYTHON: Mapping[str, tuple[str, ...]] = {
    "Slots.publish": (r"_pack_request\(", "fence", r"words\[self\._counter\] = sequence"),
    "Slots.request": ("fence", r"_unpack_request\("),
    "Slots.complete": (
        r"_pack_before_sequence\(",
        "fence",
        r"words\[at\] = sequence",
        "fence",
        r"words\[self\._counter\] \+= 1",
    ),
    "Slots.take": (r"words\[head \+ _ATTEMPTS\] = ", r"words\[head \+ _TAKEN\] = ", "full_fence"),
    "RequestWriter.cancel": (r"self\._cancelled\] = sequence", "full_fence"),
    "Slots.reply": (r"words\[at\] != sequence", "fence", r"_unpack_reply\("),
    "RequestReader.between": ("fence", r"words\[head\]"),
    "_order": ("fence",),
    "CounterPoller.load": (r"_words\[self\._place\]", "_order"),
    "RequestTable.poll": (r"polled_count = replies\.poller\.load\(\)", r"try_head\("),
    "RecordRingWriter.write": (r"words\[_READ\]", r"np\.copyto\(", "fence", r"words\[_WRITTEN\] = "),
    "RecordRingReader.try_next": (r"words\[_WRITTEN\]", "fence", r"_copy\(", "fence", r"words\[_READ\] = "),
}


def orders() -> dict[str, Order]:
    """The order of each operation, by its function, its kind and its place; the second of a kind ends in `#2`."""
    found: dict[str, Order] = {}

    def note(name: str, order: Order) -> None:
        number = 2
        unique = name
        while unique in found:
            unique, number = f"{name}#{number}", number + 1
        found[unique] = order

    for function, operations in FUNCTIONS.items():
        for operation in operations:
            order, _, place = operation.partition(" ")
            if place:
                note(f"{function} {place}", Order(order))
    for function, does in PYTHON.items():
        for each in does:
            if each in ("fence", "full_fence"):
                note(f"{function} fence", Order.SEQ_CST)
    return found


# The source in C

_COMMENT_OR_TEXT = re.compile(
    r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'|^[ \t]*\#(?:[^\n]*\\\n)*[^\n]*',
    re.DOTALL | re.MULTILINE,
)
_FUNCTION = re.compile(r"^(?:static |inline |const |EXPORTED )*[A-Za-z_]\w*[ *]+(\w+)\([^;{}]*\)\s*\{", re.MULTILINE)
_OPERATION = re.compile(
    r"\b(load_relaxed|load_acquire|store_relaxed|store_release|fence_acquire|fence_full|memcpy|memmove"
    r"|__atomic_\w+|atomic_\w+)\s*\("
)
#: The words of a head, as ring.c calls them.
_PLACES = {"to": "words", "from": "words"}


@cache
def c_bodies(text: str) -> dict[str, str]:
    """The body of each function of a C source, without comments, texts and what the preprocessor reads."""
    text = _COMMENT_OR_TEXT.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    return {match[1]: text[match.end() : _closing(text, match.end() - 1, "{}")] for match in _FUNCTION.finditer(text)}


@cache
def c_functions(text: str) -> dict[str, tuple[str, ...]]:
    """The functions of a C source that have such operations, each with its row as in `FUNCTIONS`."""
    functions = {name: tuple(_operations(body)) for name, body in c_bodies(text).items()}
    return {name: operations for name, operations in functions.items() if operations}


def _closing(text: str, opening: int, pair: str) -> int:
    depth = 0
    for index in range(opening, len(text)):
        depth += (text[index] == pair[0]) - (text[index] == pair[1])
        if not depth:
            return index
    raise ValueError(f"no {pair[1]} closes the {pair[0]} at {opening}")


def _operations(body: str) -> Iterator[str]:
    for match in _OPERATION.finditer(body):
        arguments = _arguments(body[match.end() : _closing(body, match.end() - 1, "()")])
        name = match[1]
        if name in ("memcpy", "memmove"):
            yield "copy"
        elif name in WRAPPERS:
            order, kind, *_ = WRAPPERS[name].split()
            yield f"{order} fence" if kind == "fence" else f"{order} {kind} {_place(arguments[0])}"
        elif name.endswith("thread_fence"):
            yield f"{_order(arguments[0])} fence"
        elif name in ("atomic_load", "atomic_store"):
            yield f"seq_cst {name.removeprefix('atomic_')} {_place(arguments[0])}"
        else:
            kind = name.removeprefix("__").removeprefix("atomic_").removesuffix("_explicit").removesuffix("_n")
            yield f"{_order(arguments[-1])} {kind} {_place(arguments[0])}"


def _arguments(text: str) -> list[str]:
    arguments, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and not depth:
            arguments.append("")
        else:
            arguments[-1] += letter
    return [each.strip() for each in arguments]


def _order(argument: str) -> str:
    return argument.lower().removeprefix("memory_order_").removeprefix("__atomic_")


def _place(argument: str) -> str:
    """The member, or the word of an array, that an argument points to."""
    last = re.split(r"->|\.", argument.lstrip("&*( "))[-1]
    name, _, index = last.partition("[")
    index = index.rstrip("])")
    if re.fullmatch(r"[A-Z][A-Z_]*", index):
        return index.lower()
    return _PLACES.get(name, name)


# The source in Python


@cache
def python_functions(text: str) -> dict[str, str]:
    """The text of each function, by its qualified name, without docstrings and comments."""
    functions = {}
    for owner, node in _methods(text):
        body = node.body[ast.get_docstring(node) is not None :]
        functions[f"{owner.name}.{node.name}" if owner else node.name] = "\n".join(map(ast.unparse, body))
    return functions


_FENCE = r"(?<!\w)(?:fence|_order)\(\)"
_FENCES = {"fence": _FENCE, "_order": _FENCE, "full_fence": r"(?<!\w)full_fence\(\)"}


def _python_differs(text: str, does: tuple[str, ...]) -> str:
    at = 0
    for each in does:
        pattern = _FENCES.get(each, each)
        match = re.compile(pattern).search(text, at)
        if match is None:
            return f"no {each!r} after the {at}th character of its text"
        at = match.end()
    expected = sum(each in _FENCES for each in does)
    found = sum(len(re.findall(pattern, text)) for pattern in set(_FENCES.values()))
    return "" if found == expected else f"{found} fences, the table has {expected}"


# Both


def sources(repository: Path) -> dict[str, str]:
    """The text of every file that the tables speak of, by its name."""
    files = [
        *sorted((repository / "native").rglob("*.[ch]")),
        *sorted((repository / "shmserve").glob("*.py")),
        *sorted((repository / "shmserve/pure").glob("*.py")),
        *sorted((repository / "client").glob("*.py")),
    ]
    return {str(file.relative_to(repository)): file.read_text() for file in files}


def differences(texts: Mapping[str, str]) -> list[str]:
    """Where the source is not what the tables say; each with the remedy."""
    found = []
    known: set[str] = set()
    for file, text in texts.items():
        if not file.endswith((".c", ".h")):
            continue
        for name, operations in c_functions(text).items():
            if name in WRAPPERS:
                known.add(name)
                expected: tuple[str, ...] = (WRAPPERS[name],)
            elif name in FUNCTIONS:
                known.add(name)
                expected = FUNCTIONS[name]
            else:
                if name not in UNMODELLED and any(_is_ordered(each) for each in operations):
                    found.append(
                        f"{file}: {name} has {', '.join(operations)}, and no model has it: add it to FUNCTIONS of "
                        "tests/support/memory_model/source.py and to a model"
                    )
                continue
            if operations != expected:
                found.append(
                    f"{file}: {name} has {', '.join(operations)}; the models are built with {', '.join(expected)}"
                )
    found += [f"no function {name} in native/" for name in {*WRAPPERS, *FUNCTIONS} - known]
    methods = {
        name: (file, text)
        for file, whole in texts.items()
        if file.endswith(".py")
        for name, text in python_functions(whole).items()
    }
    for function, does in PYTHON.items():
        if function not in methods:
            found.append(f"no function {function} in shmserve/ or client/")
            continue
        file, text = methods[function]
        if problem := _python_differs(text, does):
            found.append(f"{file}: {function}: {problem}")
    return found


def functions_with_comments(texts: Mapping[str, str]) -> dict[str, str]:
    """Each function of native/ and shmserve/ with an ORDER comment, inside it or before it, and its file."""
    found = {}
    for file, text in texts.items():
        if file.startswith("client/"):
            continue
        lines = text.splitlines()
        at = [number for number, line in enumerate(lines, 1) if re.search(r"(?:#|/\*) ORDER:", line)]
        if file.endswith(".py"):
            spans = [
                (node.lineno, node.end_lineno or 0, f"{owner.name}.{node.name}" if owner is not None else node.name)
                for owner, node in _methods(text)
            ]
        else:
            blank = _COMMENT_OR_TEXT.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
            matches = list(_FUNCTION.finditer(blank))
            ends = [blank.count("\n", 0, _closing(blank, match.end() - 1, "{}")) + 1 for match in matches]
            # From the end of the function before it, for a comment may stand above.
            spans = [(before + 1, end, match[1]) for match, before, end in zip(matches, [0, *ends], ends, strict=False)]
        for number in at:
            owner = next((name for first, last, name in spans if first <= number <= last), f"line {number}")
            found[owner] = file
    return found


def _methods(text: str) -> Iterator[tuple[ast.ClassDef | None, ast.FunctionDef]]:
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            yield None, node
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    yield node, inner


def _is_ordered(operation: str) -> bool:
    return operation.partition(" ")[0] in ("acquire", "release", "acq_rel", "seq_cst")
