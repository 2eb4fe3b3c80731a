"""Exhaustive explorer of small programs over shared words, in the terms of the C11 memory model.

The machine is a view machine (Kang et al., "A promising semantics for relaxed-memory concurrency", POPL 2017) with late
loads instead of promises. A store appends a message to its word; a load may read any message that is not older than the
thread's view, so loads read stale values. A release message carries its writer's view, and an acquire load takes it over.
A relaxed load is late: it has a value only when a later step needs it. That is how a load moves behind later stores.

Three facts keep the number of states small. Each word has one writer, so a store depends on nothing that another thread does. An
early store only adds to the messages that others may read, and a late load only adds to those that it may read. So stores
run with the step before them, loads when they are needed, and only those steps are interleaved that depend on others.

In two points the machine is as strong as a processor: a branch and a computed value wait for their loads, so a later store
stays behind them (control and data dependencies), and a value never comes out of thin air.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple


class Order(Enum):
    """Memory orders of C11; a relaxed fence does nothing."""

    RELAXED = "relaxed"
    ACQUIRE = "acquire"
    RELEASE = "release"
    SEQ_CST = "seq_cst"


View = tuple[int, ...]
#: A value, and the view that its reader may take over.
Message = tuple[int, View]
#: A late load: its register, its word, and the oldest message that it may read.
Late = tuple[int, int, int]


class ThreadState(NamedTuple):
    place: int
    registers: tuple[int, ...]
    current: View  # the messages that the thread can no longer read behind
    acquired: View  # what an acquire fence makes current
    released: View  # passed on by a relaxed store: the view at the last release fence
    late: tuple[Late, ...]


class State(NamedTuple):
    threads: tuple[ThreadState, ...]
    words: tuple[tuple[Message, ...], ...]
    fences: View  # the view that the seq_cst fences have joined


class Expression(NamedTuple):
    """A function of registers, which are its parameters without a default."""

    function: Callable[..., Any]
    registers: tuple[int, ...]

    def of(self, registers: tuple[int, ...]) -> Any:
        return self.function(*[registers[index] for index in self.registers])


class On(NamedTuple):
    """A function of registers by their names, where they are not those of its parameters."""

    function: Callable[..., Any]
    names: tuple[str, ...]


def on(function: Callable[..., Any], *names: str) -> On:
    return On(function, names)


def _same(value: int) -> int:
    return value


Value = Callable[..., Any] | On | int | str
Condition = Callable[..., Any] | On


class Step(NamedTuple):
    """One instruction of a thread."""

    kind: str  # store, load, await, fence, branch, set, check, choose, post, try, drain, wait, any
    label: str  # for traces: the function and what it does
    word: int = -1
    words: tuple[int, ...] = ()
    register: int = -1
    order: Order = Order.RELAXED
    expression: Expression | None = None
    text: str = ""
    targets: tuple[str, ...] = ()
    places: tuple[int, ...] = ()


class Thread:
    """A program, written step by step; `at` names the function of the source that the next steps stand for."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.name = name
        self.steps: list[Step] = []
        self.labels: dict[str, int] = {}
        self.names: dict[str, int] = {}
        self._machine = machine
        self._function = ""
        self._unique = 0

    def at(self, function: str) -> None:
        self._function = function

    def _register(self, name: str) -> int:
        return self.names.setdefault(name, len(self.names))

    def _expression(self, value: Value) -> Expression:
        if isinstance(value, On):
            return Expression(value.function, tuple(map(self._register, value.names)))
        if isinstance(value, str):
            return Expression(_same, (self._register(value),))
        if not callable(value):
            return Expression(lambda: value, ())
        parameters = inspect.signature(value).parameters.values()
        return Expression(value, tuple(self._register(each.name) for each in parameters if each.default is each.empty))

    def _add(self, kind: str, does: str, **given: Any) -> None:
        self.steps.append(Step(kind, f"{self._function}: {does}" if self._function else does, **given))

    def store(self, word: str, value: Value, order: Order = Order.RELAXED) -> None:
        index = self._machine.word(word)
        self._machine.writes(index, self.name)
        self._add("store", f"store {word} {order.value}", word=index, order=order, expression=self._expression(value))

    def load(self, register: str, word: str, order: Order = Order.RELAXED) -> None:
        index = self._machine.word(word)
        self._add("load", f"load {word} {order.value}", word=index, order=order, register=self._register(register))

    def wait_until(
        self, register: str, word: str, condition: Callable[[int], bool], order: Order = Order.RELAXED
    ) -> None:
        """Poll the word until a load satisfies the condition; the loads that do not are left out."""
        expression = Expression(condition, ())
        self._add(
            "await",
            f"poll {word} {order.value}",
            word=self._machine.word(word),
            order=order,
            register=self._register(register),
            expression=expression,
        )

    def fence(self, order: Order) -> None:
        if order is not Order.RELAXED:
            self._add("fence", f"fence {order.value}", order=order)

    def set(self, register: str, value: Value) -> None:
        self._add("set", f"set {register}", register=self._register(register), expression=self._expression(value))

    def jump_if(self, condition: Condition, target: str) -> None:
        self._add("branch", f"to {target}?", expression=self._expression(condition), targets=(target,))

    def jump(self, target: str) -> None:
        self._add("branch", f"to {target}", expression=Expression(lambda: True, ()), targets=(target,))

    def label(self, name: str) -> None:
        self.labels[name] = len(self.steps)

    def unique(self, stem: str) -> str:
        self._unique += 1
        return f"{stem} {self._unique}"

    def choose(self, *targets: str) -> None:
        """Go to one of the labels; time, scheduling or a caller decides."""
        self._add("choose", "choose", targets=targets)

    def check(self, condition: Condition, text: str) -> None:
        """A property: `text` is reported where the condition is false."""
        self._add("check", f"check {text}", expression=self._expression(condition), text=text)

    def post(self, semaphore: str) -> None:
        self._add("post", f"post {semaphore}", word=self._machine.semaphore(semaphore))

    def try_take(self, register: str, semaphore: str) -> None:
        """Take a token, 1; 0 where the load that looks for one finds none, which may be a stale one."""
        self._add(
            "try", f"try_take {semaphore}", word=self._machine.semaphore(semaphore), register=self._register(register)
        )

    def drain(self, register: str, semaphore: str) -> None:
        """Take all tokens at once, and their number; 0 where there are none. The kernel decides: nothing is stale."""
        self._add(
            "drain", f"drain {semaphore}", word=self._machine.semaphore(semaphore), register=self._register(register)
        )

    def wait_for_any(self, semaphores: list[str]) -> None:
        """Sleep until one of them has a token, which stays there."""
        words = tuple(map(self._machine.semaphore, semaphores))
        self._add("any", f"wait for {' or '.join(semaphores)}", words=words)

    def take(self, semaphore: str) -> None:
        """Sleep until there is a token, and take it. The sleep has no time limit: after a lost wake-up it lasts for ever."""
        self._add("wait", f"wait {semaphore}", word=self._machine.semaphore(semaphore))

    def finish(self) -> None:
        self.labels["end"] = len(self.steps)
        self.steps = [step._replace(places=tuple(self.labels[name] for name in step.targets)) for step in self.steps]


class Machine:
    """Words with their first values, and threads."""

    def __init__(self) -> None:
        self.words: dict[str, int] = {}
        self.first: list[int] = []
        self.threads: list[Thread] = []
        self.semaphores: set[int] = set()
        self.plain: set[int] = set()
        self._writers: dict[int, str] = {}

    def word(self, name: str, first: int = 0) -> int:
        if name not in self.words:
            self.words[name] = len(self.first)
            self.first.append(first)
        return self.words[name]

    def plain_word(self, name: str) -> int:
        """Memory that is copied without atomic operations: a load of it that has a choice is a data race."""
        index = self.word(name)
        self.plain.add(index)
        return index

    def semaphore(self, name: str) -> int:
        index = self.word(name)
        self.semaphores.add(index)
        return index

    def writes(self, word: int, thread: str) -> None:
        if self._writers.setdefault(word, thread) != thread:
            raise ValueError(f"two threads write one word, {list(self.words)[word]}: every shared word has one writer")

    def thread(self, name: str) -> Thread:
        self.threads.append(Thread(self, name))
        return self.threads[-1]

    def writer(self, word: int) -> str | None:
        return self._writers.get(word)


@dataclass
class Result:
    """Findings of an exploration."""

    states: int = 0
    finals: int = 0
    #: Each violated property, and the shortest trace to it that was found.
    violations: dict[str, list[str]] = field(default_factory=dict)
    #: The registers of all threads at their ends, as the threads name them.
    outcomes: set[tuple[tuple[str, int], ...]] = field(default_factory=set)


#: The state after a step, None where it violates a property; the labels for a trace; and the violated property or ''.
Move = tuple["State | None", tuple[str, ...], str]
#: The violation of reading plain memory while another thread may be writing it.
RACE = "a data race: plain memory is copied while it is written"


def join(one: View, other: View) -> View:
    return tuple(map(max, one, other))


def raised(view: View, word: int, stamp: int) -> View:
    return view if view[word] >= stamp else (*view[:word], stamp, *view[word + 1 :])


class Explorer:
    """Explores all states of a machine."""

    def __init__(self, machine: Machine, *, reduced: bool = True, most_states: int = 5_000_000) -> None:
        for thread in machine.threads:
            thread.finish()
        self._machine = machine
        self._programs = [thread.steps for thread in machine.threads]
        self._names = list(machine.words)
        self._most = most_states
        self._reduced = reduced
        self._own = [
            {index for index in range(len(self._names)) if machine.writer(index) == thread.name}
            for thread in machine.threads
        ]
        self._readers = [
            [
                place
                for place, thread in enumerate(machine.threads)
                if any(step.word == index and step.kind in ("load", "await", "try") for step in thread.steps)
            ]
            for index in range(len(self._names))
        ]

    def run(self) -> Result:
        """Explore everything."""
        result = Result()
        nothing = (0,) * len(self._names)
        begin = State(
            tuple(
                ThreadState(0, (0,) * len(thread.names), nothing, nothing, nothing, ())
                for thread in self._machine.threads
            ),
            tuple(((value, nothing),) for value in self._machine.first),
            nothing,
        )
        known: dict[State, int] = {}
        parents: list[tuple[int, tuple[str, ...]]] = []
        before: list[list[int]] = []  # of each state, the states that lead to it
        finals: list[int] = []
        leaves: list[int] = []
        queue: list[State] = []

        def note(state: State, parent: int, labels: tuple[str, ...]) -> None:
            number = known.get(state)
            if number is None:
                number = known[state] = len(parents)
                if number >= self._most:
                    raise MemoryError(f"more than {self._most} states: make the model smaller")
                parents.append((parent, labels))
                before.append([])
                queue.append(state)
            if parent >= 0:
                before[number].append(parent)

        def violated(text: str, number: int, labels: tuple[str, ...]) -> None:
            if text not in result.violations:
                trace = list(labels)
                while number >= 0:
                    number, earlier = parents[number]
                    trace[:0] = earlier
                result.violations[text] = trace

        # Every thread runs to its first step that depends on others.
        starts: list[tuple[State, tuple[str, ...]]] = [(begin, ())]
        for place in range(len(self._programs)):
            starts = [
                (after, labels + more)
                for state, labels in starts
                for after, more, _ in self._run_on(state, place)
                if after is not None
            ]
        for state, labels in starts:
            note(self._canonical(state), -1, labels)
        head = 0
        while head < len(queue):
            state = queue[head]
            number = head
            queue[head] = None  # type: ignore[call-overload]  # `known` keeps it
            head += 1
            moved = False
            for place in range(len(self._programs)):
                for after, labels, text in (self._steps if self._reduced else self._all_steps)(state, place):
                    moved = True
                    if text:
                        violated(text, number, labels)
                        if after is None:
                            continue
                    assert after is not None
                    note(self._canonical(after), number, labels)
            if all(
                thread.place == len(program) and not thread.late
                for thread, program in zip(state.threads, self._programs, strict=True)
            ):
                finals.append(number)
                result.outcomes.add(
                    tuple(
                        (f"{thread.name}.{name}", registers.registers[index])
                        for thread, registers in zip(self._machine.threads, state.threads, strict=True)
                        for name, index in thread.names.items()
                    )
                )
            elif not moved:
                leaves.append(number)
        result.states, result.finals = len(known), len(finals)
        # From every state the end can be reached: no deadlock, and nothing that is lost keeps a thread polling for ever.
        ends = [False] * len(parents)
        pending = list(finals)
        for each in pending:
            ends[each] = True
        while pending:
            for each in before[pending.pop()]:
                if not ends[each]:
                    ends[each] = True
                    pending.append(each)
        if not result.violations and not all(ends):
            stuck = next((each for each in leaves if not ends[each]), ends.index(False))
            violated("a thread waits for ever", stuck, ())
        return result

    def _canonical(self, state: State) -> State:
        """Forget the messages that no thread can read, so that states which differ only in them are one."""
        floors = []
        for word, readers in enumerate(self._readers):
            last = len(state.words[word]) - 1
            floor = last
            if last:
                for place in readers:
                    thread = state.threads[place]
                    floor = min(floor, thread.current[word])
                    for _, late_word, oldest in thread.late:
                        if late_word == word and oldest < floor:
                            floor = oldest
            floors.append(floor)
        if not any(floors):
            return state
        shift = tuple(floors)

        def shifted(view: View) -> View:
            return tuple([a - b if a > b else 0 for a, b in zip(view, shift, strict=True)])

        return State(
            tuple(
                thread._replace(
                    current=shifted(thread.current),
                    acquired=shifted(thread.acquired),
                    released=shifted(thread.released),
                    late=tuple((register, word, oldest - shift[word]) for register, word, oldest in thread.late),
                )
                for thread in state.threads
            ),
            tuple(
                tuple((value, shifted(view)) for value, view in messages[floor:])
                for messages, floor in zip(state.words, floors, strict=True)
            ),
            shifted(state.fences),
        )

    def _needs(self, thread: ThreadState, step: Step) -> int:
        """The index in `late` of a load that this step waits for; -1 if it waits for none."""
        late = thread.late
        if not late:
            return -1
        kind = step.kind
        if kind in ("post", "try", "drain", "wait", "any") or (
            kind in ("fence", "store") and step.order is not Order.RELAXED
        ):
            return 0
        if step.expression is not None:
            for index, (register, _, _) in enumerate(late):
                if register in step.expression.registers:
                    return index
        if step.register >= 0:
            for index, (register, _, _) in enumerate(late):
                if register == step.register:
                    return index  # the register is used again
        if step.word >= 0:
            for index, (_, word, _) in enumerate(late):
                if word == step.word:
                    return index
        return -1

    def _all_steps(self, state: State, place: int) -> list[Move]:
        """As `_steps` without the reductions: each step by itself, and each late load at any time after its step."""
        program, thread = self._programs[place], state.threads[place]
        if thread.place < len(program) and self._needs(thread, program[thread.place]) < 0:
            step = program[thread.place]
            is_load = step.kind == "load" and (step.order is Order.RELAXED or step.word in self._own[place])
            is_local = step.kind in ("store", "branch", "set", "check", "choose") or is_load
            if is_local or (step.kind == "fence" and step.order is not Order.SEQ_CST):
                found = self._run_on(state, place, one=True)
            else:
                found = self._steps(state, place)
        else:
            found = []
        words: set[int] = set()
        for index, (_, word, _) in enumerate(thread.late):
            if word not in words:  # loads of one word stay in their order
                words.add(word)
                found = found + self._resolve(state, place, index)
        return found

    def _steps(self, state: State, place: int) -> list[Move]:
        """All that this thread can do now."""
        program, thread = self._programs[place], state.threads[place]
        if thread.place == len(program):
            if not thread.late:
                return []
            return self._resolve(state, place, 0)
        step = program[thread.place]
        index = self._needs(thread, step)
        if index >= 0:
            return self._resolve(state, place, index)
        name = self._machine.threads[place].name
        label = f"{name}: {step.label}"
        found: list[Move] = []
        messages = state.words[step.word] if step.word >= 0 else ()
        kind = step.kind
        if kind in ("load", "await"):
            for stamp in range(thread.current[step.word], len(messages)):
                value, view = messages[stamp]
                if kind == "await" and not (step.expression is not None and step.expression.function(value)):
                    continue
                after = self._read(thread, step.word, stamp, view, step.order)
                after = _assigned(after, step.register, value)._replace(place=thread.place + 1)
                stale = f" ({len(messages) - 1 - stamp} behind)" if stamp < len(messages) - 1 else ""
                found += self._run_on(_with(state, place, after), place, (f"{label} -> {value}{stale}",))
            return found
        if kind == "any":
            if any(state.words[word][-1][0] for word in step.words):
                found += self._run_on(_with(state, place, thread._replace(place=thread.place + 1)), place, (label,))
            return found
        if kind == "fence":  # seq_cst: the others run at once
            current = join(join(thread.current, thread.acquired), state.fences)
            after = thread._replace(
                place=thread.place + 1, current=current, acquired=join(thread.acquired, current), released=current
            )
            return self._run_on(_with(state, place, after)._replace(fences=current), place, (label,))
        last = len(messages) - 1
        value, view = messages[last]
        if kind == "post":
            after = thread._replace(place=thread.place + 1, current=raised(thread.current, step.word, last + 1))
            words = list(state.words)
            words[step.word] = (*messages, (value + 1, join(view, after.current)))
            return self._run_on(_with(state, place, after)._replace(words=tuple(words)), place, (label,))
        # Tokens are taken from the latest value; only one thread takes them.
        if value > 0 or kind == "drain":
            taken = value if kind == "drain" else 1
            if not taken:
                after = _assigned(thread, step.register, 0)._replace(place=thread.place + 1)
                return self._run_on(_with(state, place, after), place, (f"{label} -> 0",))
            after = self._read(thread, step.word, last, view, Order.ACQUIRE)
            after = after._replace(place=thread.place + 1, current=raised(after.current, step.word, last + 1))
            words = list(state.words)
            words[step.word] = (*messages, (value - taken, view))
            after = _assigned(after, step.register, taken)
            found += self._run_on(
                _with(state, place, after)._replace(words=tuple(words)), place, (f"{label} -> {taken}",)
            )
        if kind == "try" and any(value == 0 for value, _ in messages[thread.current[step.word] :]):
            after = _assigned(thread, step.register, 0)._replace(place=thread.place + 1)
            found += self._run_on(_with(state, place, after), place, (f"{label} -> 0",))
        return found

    def _resolve(self, state: State, place: int, index: int) -> list[Move]:
        """Give a late load each of its possible values."""
        thread = state.threads[place]
        register, word, oldest = thread.late[index]
        messages = state.words[word]
        name = self._machine.threads[place].name
        race = word in self._machine.plain and oldest < len(messages) - 1
        found: list[Move] = []
        for stamp in range(oldest, len(messages)):
            value, view = messages[stamp]
            after = self._read(thread, word, stamp, view, Order.RELAXED)
            after = _assigned(after, register, value)._replace(late=thread.late[:index] + thread.late[index + 1 :])
            stale = f" ({len(messages) - 1 - stamp} behind)" if stamp < len(messages) - 1 else ""
            label = f"{name}: {self._names[word]} = {value}{stale}"
            if race:
                found.append((None, (label,), RACE))
            found += self._run_on(_with(state, place, after), place, (label,))
        return found

    @staticmethod
    def _read(thread: ThreadState, word: int, stamp: int, view: View, order: Order) -> ThreadState:
        current = raised(thread.current, word, stamp)
        acquired = join(thread.acquired, view)
        if order is not Order.RELAXED:
            current = join(current, view)
        return thread._replace(current=current, acquired=join(acquired, current))

    def _run_on(self, state: State, place: int, labels: tuple[str, ...] = (), *, one: bool = False) -> list[Move]:
        """Run the thread up to its next step that depends on other threads; `one`: for one step."""
        if not self._reduced and not one:
            return [(state, labels, "")]
        program = self._programs[place]
        name = self._machine.threads[place].name
        steps = 0
        while True:
            thread = state.threads[place]
            if thread.place == len(program):
                return [(state, labels, "")]
            step = program[thread.place]
            if self._needs(thread, step) >= 0:
                return [(state, labels, "")]
            if one and steps:
                return [(state, labels, "")]
            steps += 1
            if steps > 10_000:
                raise RuntimeError(f"{name} runs for ever without looking at shared memory, at {step.label}")
            kind = step.kind
            expression = step.expression
            if kind == "load" and step.order is Order.RELAXED and step.word not in self._own[place]:
                late = (*thread.late, (step.register, step.word, thread.current[step.word]))
                thread = _assigned(thread, step.register, 0)  # its former value makes no difference now
                state = _with(state, place, thread._replace(place=thread.place + 1, late=late))
            elif kind == "load" and step.word in self._own[place]:
                value = state.words[step.word][-1][0]
                state = _with(state, place, _assigned(thread, step.register, value)._replace(place=thread.place + 1))
            elif kind == "store":
                assert expression is not None
                value = int(expression.of(thread.registers))
                messages = state.words[step.word]
                current = raised(thread.current, step.word, len(messages))
                view = current if step.order is not Order.RELAXED else raised(thread.released, step.word, len(messages))
                after = thread._replace(
                    place=thread.place + 1, current=current, acquired=join(thread.acquired, current)
                )
                words = list(state.words)
                words[step.word] = (*messages, (value, view))
                state = _with(state, place, after)._replace(words=tuple(words))
                labels = (*labels, f"{name}: {step.label} = {value}")
            elif kind == "fence" and step.order is not Order.SEQ_CST:
                if step.order is Order.ACQUIRE:
                    after = thread._replace(current=join(thread.current, thread.acquired))
                else:
                    after = thread._replace(released=thread.current)
                state = _with(state, place, after._replace(place=thread.place + 1))
                labels = (*labels, f"{name}: {step.label}")
            elif kind == "branch":
                assert expression is not None
                to = step.places[0] if expression.of(thread.registers) else thread.place + 1
                state = _with(state, place, thread._replace(place=to))
            elif kind == "set":
                assert expression is not None
                value = int(expression.of(thread.registers))
                state = _with(state, place, _assigned(thread, step.register, value)._replace(place=thread.place + 1))
            elif kind == "check":
                assert expression is not None
                if not expression.of(thread.registers):
                    return [(None, (*labels, f"{name}: {step.label}"), step.text)]
                state = _with(state, place, thread._replace(place=thread.place + 1))
            elif kind == "choose":
                found = []
                for to in step.places:
                    found += self._run_on(_with(state, place, thread._replace(place=to)), place, labels)
                return found
            else:
                return [(state, labels, "")]


def _with(state: State, place: int, thread: ThreadState) -> State:
    threads = list(state.threads)
    threads[place] = thread
    return State(tuple(threads), state.words, state.fences)


def _assigned(thread: ThreadState, register: int, value: int) -> ThreadState:
    if register < 0 or thread.registers[register] == value:
        return thread
    registers = list(thread.registers)
    registers[register] = value
    return thread._replace(registers=tuple(registers))


def explore(machine: Machine, *, reduced: bool = True) -> Result:
    """Explore all states of the machine."""
    return Explorer(machine, reduced=reduced).run()
