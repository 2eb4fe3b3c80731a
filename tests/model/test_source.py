"""The memory orders that the models are built with are those of the source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.folders import REPOSITORY
from tests.support.memory_model.models import CONTROLS, MODELS, SURPLUS, asked, ordered_sites
from tests.support.memory_model.source import (
    FUNCTIONS,
    PYTHON,
    UNMODELLED,
    c_functions,
    differences,
    functions_with_comments,
    sources,
)
from tests.support.memory_model.steps import STEPS, broken, function_texts

TEXTS = sources(REPOSITORY)
#: Each order in C, as it is written.
_ORDERED = re.compile(r"\b(?:load_acquire|store_release|fence_acquire|fence_full)\(|memory_order_(?!relaxed)\w+")
_WEAKER = {
    "load_acquire(": "load_relaxed(",
    "store_release(": "store_relaxed(",
    "fence_acquire(": "processor(",
    "fence_full(": "processor(",
}


def test_the_source_has_the_operations_and_the_orders_of_the_table() -> None:
    assert differences(TEXTS) == []


def ordered_places() -> list[tuple[str, int, int]]:
    """Each order of the shared words in native/: its file, and where it stands in the text."""
    return [
        (file, match.start(), match.end())
        for file, text in TEXTS.items()
        if file.startswith("native/core/") and file != "native/core/doorbell.c"
        for match in _ORDERED.finditer(text)
        if not text[: match.start()].endswith(("uint64_t ", "void "))  # the definitions in atomics.h
    ]


def test_every_weaker_order_in_the_source_in_c_is_noticed() -> None:
    places = ordered_places()
    unnoticed = []
    for file, start, end in places:
        text = TEXTS[file]
        weaker = text[:start] + _WEAKER.get(text[start:end], "memory_order_relaxed") + text[end:]
        if differences({**TEXTS, file: weaker}) == []:
            unnoticed.append(_names(text[:start])[-1])

    assert len(places) >= 20 and unnoticed == ["cut_through_is_due"]


def test_every_missing_fence_in_python_is_noticed() -> None:
    fences = 0
    for file, text in TEXTS.items():
        if not file.endswith(".py"):
            continue
        for match in re.finditer(r"(?<=\n)( +)(?:full_fence|fence|_order)\(\)(?=\n| +#)", text):
            function = next(
                node
                for node in ast.walk(ast.parse(text))
                if isinstance(node, ast.FunctionDef)
                and node.lineno <= text.count("\n", 0, match.start()) + 1 <= (node.end_lineno or 0)
            )
            if not any(name.rpartition(".")[2] == function.name for name in PYTHON):
                continue  # a use of _order, or the fence of another program
            fences += 1
            missing = text[: match.start()] + match[1] + "pass" + text[match.end() :]

            assert differences({**TEXTS, file: missing}) != [], f"{file}: {function.name}"
    assert fences >= 12


def test_two_stores_the_other_way_round_are_noticed() -> None:
    file = "native/core/ring.c"
    lines = TEXTS[file].splitlines(keepends=True)
    sequence = next(index for index, line in enumerate(lines) if "store_release(&head->sequence" in line)
    counter = next(index for index, line in enumerate(lines) if "store_release(&line->counter, load" in line)
    lines[sequence], lines[counter] = lines[counter], lines[sequence]

    assert any("ring_complete" in each for each in differences({**TEXTS, file: "".join(lines)}))


def test_a_new_function_with_an_order_is_noticed() -> None:
    file = "native/core/ring.c"
    more = "\nvoid ring_other(CounterLine *line)\n{\n    store_release(&line->counter, 1);\n}\n"

    assert any("ring_other" in each for each in differences({**TEXTS, file: TEXTS[file] + more}))


@pytest.mark.parametrize(
    ("text", "operations"),
    [
        ("atomic_store_explicit(&line->counter, 1, memory_order_release);", ("release store counter",)),
        ("__atomic_store_n(&self->counter[PROCESSOR], f(1, 2), __ATOMIC_RELAXED);", ("relaxed store processor",)),
        ("__atomic_thread_fence(__ATOMIC_SEQ_CST);", ("seq_cst fence",)),
        ("atomic_fetch_add_explicit(&line->counter, 1, memory_order_acq_rel);", ("acq_rel fetch_add counter",)),
        ("atomic_store(&line->counter, 1);", ("seq_cst store counter",)),
        ("memcpy(a, b, 8); /* load_acquire(&line->counter) */", ("copy",)),
    ],
)
def test_an_operation_is_read_in_each_spelling(text: str, operations: tuple[str, ...]) -> None:
    (found,) = c_functions(f"static inline int f(const Word *word)\n{{\n    {text}\n}}\n").values()

    assert found == operations


def test_every_order_comment_stands_in_a_function_that_a_model_has() -> None:
    commented = functions_with_comments(TEXTS)

    assert {name for name in commented if name not in {*FUNCTIONS, *PYTHON, *UNMODELLED}} == set()
    assert len(commented) >= 18


def functions_of(model: str) -> set[str]:
    """The functions that the model's steps name."""
    return {
        step.label.partition(": ")[0]
        for thread in MODELS[model].build(asked(model)).threads
        for step in thread.steps
        if ": " in step.label
    }


def test_every_function_that_a_model_names_exists() -> None:
    native = {name for file, text in TEXTS.items() if file.endswith((".c", ".h")) for name in _names(text)}
    python = {
        f"{owner.name}.{node.name}" if owner is not None else node.name
        for folder in ("shmserve", "client", "daemon")
        for file in (REPOSITORY / folder).rglob("*.py")
        if not file.is_symlink()
        for owner, node in _definitions(file)
    }
    steps = {function for model in MODELS for function in functions_of(model)}
    copies = {function for function in steps if " " in function}  # of payloads, by whichever codec

    assert steps - copies - native - python == set()
    assert copies == {"copy of the payload", "copy of the result", "copy of the rest", "decoding of the reply"}


def _names(text: str) -> list[str]:
    return re.findall(r"^(?:static |inline |const )*[A-Za-z_]\w*[ *]+(\w+)\(", text, re.MULTILINE)


def _definitions(file: Path) -> list[tuple[ast.ClassDef | None, ast.FunctionDef]]:
    found: list[tuple[ast.ClassDef | None, ast.FunctionDef]] = []
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.append((None, node))
        elif isinstance(node, ast.ClassDef):
            found += [(node, inner) for inner in node.body if isinstance(inner, ast.FunctionDef)]
    return found


def test_every_function_with_an_order_is_in_a_model_or_surplus() -> None:
    asked_for = {site.partition(" ")[0] for model in MODELS for site in asked(model).sites}
    surplus = {site.partition(" ")[0] for site in SURPLUS}

    # RequestTable.poll and CounterPoller.load use _order and poller_load.
    assert {*FUNCTIONS, *PYTHON} - asked_for - surplus == {"CounterPoller.load", "RequestTable.poll"}


@pytest.fixture(scope="module")
def bodies() -> dict[str, str]:
    return function_texts(REPOSITORY)


@pytest.mark.parametrize("step", STEPS)
def test_the_source_keeps_the_rule_that_a_control_breaks(bodies: dict[str, str], step: str) -> None:
    assert broken(step, bodies) == []


@pytest.mark.parametrize("step", STEPS)
def test_a_rule_that_is_not_in_the_source_is_noticed(bodies: dict[str, str], step: str) -> None:
    for function, patterns in STEPS[step]:
        text = bodies[function]
        match = re.search(patterns[-1], text)
        assert match is not None

        assert broken(step, {**bodies, function: text[: match.start()]}) != []


def test_every_step_of_a_model_is_a_rule() -> None:
    assert STEPS.keys() == CONTROLS.keys() - ordered_sites()
