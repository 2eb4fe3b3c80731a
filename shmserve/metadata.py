r"""The safe form of an observation's metadata: pickle-5 bytes, written by the C pickler and read without an unpickler.

The tree of dict, list, tuple and constants is a pickle of protocol 5, in which each value whose bytes lie in the
payload is a persistent id: (index, kind, dtype, shape). `load` shows received bytes to no unpickler, since even one
that refuses every global can be made to take gigabytes or to crash the process: `load` is a stack machine for the few
operations that `dump` needs. None of them names, calls or fills in an object.

>>> import pickletools
>>> metadata = dump({"task": "pick", "image": Leaf("array", "|u1", (480, 640, 3)), "time": Leaf("float", "<f8", ())})
>>> pickletools.dis(metadata)
    0: \x80 PROTO      5
    2: \x95 FRAME      73
   11: }    EMPTY_DICT
   12: (    MARK
   13: \x8c     SHORT_BINUNICODE 'task'
   19: \x8c     SHORT_BINUNICODE 'pick'
   25: \x8c     SHORT_BINUNICODE 'image'
   32: (        MARK
   33: K            BININT1    0
   35: \x8c         SHORT_BINUNICODE 'array'
   42: \x8c         SHORT_BINUNICODE '|u1'
   47: M            BININT2    480
   50: M            BININT2    640
   53: K            BININT1    3
   55: \x87         TUPLE3
   56: t            TUPLE      (MARK at 32)
   57: Q        BINPERSID
   58: \x8c     SHORT_BINUNICODE 'time'
   64: (        MARK
   65: K            BININT1    1
   67: \x8c         SHORT_BINUNICODE 'float'
   74: \x8c         SHORT_BINUNICODE '<f8'
   79: )            EMPTY_TUPLE
   80: t            TUPLE      (MARK at 64)
   81: Q        BINPERSID
   82: u        SETITEMS   (MARK at 12)
   83: .    STOP
highest protocol among opcodes = 4
>>> tree, leaves = load(metadata)
>>> tree
{'task': 'pick', 'image': Leaf('array', '|u1', (480, 640, 3)), 'time': Leaf('float', '<f8', ())}
>>> leaves == [tree["image"], tree["time"]]
True
>>> load(b"\x80\x05cos\nsystem\n.")
Traceback (most recent call last):
shmserve.metadata_leaf.MetadataError: metadata refused at byte 2 (GLOBAL): not an operation of the safe form
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from typing import Any, Final

from .metadata_leaf import (
    DEPTH_LIMIT,
    DIMENSION_LIMIT,
    DTYPES,
    KEY_LIMIT,
    LEAF_BYTES_LIMIT,
    LONG_LIMIT,
    METADATA_LIMIT,
    OPERATION_LIMIT,
    Leaf,
    MetadataError,
    key_fault,
    leaf_fault,
    quoted,
    type_name,
)
from .metadata_writer import dump

__all__ = [
    "DEPTH_LIMIT",
    "DIMENSION_LIMIT",
    "DTYPES",
    "KEY_LIMIT",
    "LEAF_BYTES_LIMIT",
    "METADATA_LIMIT",
    "OPERATION_LIMIT",
    "Leaf",
    "MetadataError",
    "dump",
    "load",
]


def load(data: bytes | memoryview) -> tuple[object, list[Leaf]]:
    """The tree that `dump` was given, with its leaves in place, and the leaves alone in the order of their index.

    data: written by anybody, and perhaps still being written: it is copied once, and only the copy is looked at. Every
    leaf is in the tree exactly once, in the order of a walk. Raises MetadataError and nothing else.
    """
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    if size > METADATA_LIMIT:
        raise MetadataError(f"metadata refused: {size} bytes, the limit is {METADATA_LIMIT}")
    data = bytes(data)
    at = 0
    try:
        position, steps = _read_head(data)
        # A value is put on the stack by one operation and taken off by one: DUP and POP are refused, and the memo
        # is for strings. So every accepted stream makes a tree: nothing in it is shared, and no leaf is left out.
        stack: list[Any] = []  # since the last MARK
        outer: list[list[Any]] = []  # the stack as each MARK found it
        memo: list[str] = []
        recalled = 0
        leaves: list[Leaf] = []
        for _ in range(steps, OPERATION_LIMIT):
            at = position  # always within the data: its last byte is STOP, and no argument may reach that
            code = data[at]
            position = start = at + 1
            constant = _CONSTANTS.get(code)
            if constant is not None:
                width, counts, decode = constant
                position += width
                if counts:
                    count = data[start] if width == 1 else int.from_bytes(data[start:position], "little")
                    start = position
                    position += count
                if position >= size:
                    raise _Fault(_CUT_SHORT)
                stack.append(decode(data[start:position]))
            elif code == _MARK:
                outer.append(stack)
                stack = []
            elif code == _TUPLE:
                values, stack = stack, outer.pop()
                stack.append(tuple(values))
            elif code == _BINPERSID:
                leaf = _leaf(stack.pop(), len(leaves))
                leaves.append(leaf)
                stack.append(leaf)
            elif code == _EMPTY_TUPLE:
                stack.append(())
            elif code == _TUPLE1:
                stack[-1] = (stack[-1],)
            elif code == _TUPLE2:
                second = stack.pop()
                stack[-1] = (stack[-1], second)
            elif code == _TUPLE3:
                third = stack.pop()
                second = stack.pop()
                stack[-1] = (stack[-1], second, third)
            elif code == _EMPTY_DICT:
                stack.append({})
            elif code == _SETITEMS:
                values, stack = stack, outer.pop()
                _set_items(stack[-1], values)
            elif code == _SETITEM:
                value = stack.pop()
                key = stack.pop()
                _set_items(stack[-1], [key, value])
            elif code == _EMPTY_LIST:
                stack.append([])
            elif code == _APPENDS:
                values, stack = stack, outer.pop()
                _append(stack[-1], values)
            elif code == _APPEND:
                value = stack.pop()
                _append(stack[-1], [value])
            elif code == _MEMOIZE:
                if type(stack[-1]) is not str:
                    raise _Fault(f"the memo is for str, not for {type_name(stack[-1])}")
                memo.append(stack[-1])
            elif code in _RECALLS:
                position += _RECALLS[code]
                if position >= size:
                    raise _Fault(_CUT_SHORT)
                index = int.from_bytes(data[start:position], "little")
                if index >= len(memo):
                    raise _Fault(f"asks for number {index} of a memo of {len(memo)}")
                recalled += len(memo[index])
                if recalled > METADATA_LIMIT:  # or a writer of the tree would write one string 4,000 times
                    raise _Fault(f"makes it {recalled} characters out of the memo, the limit is {METADATA_LIMIT}")
                stack.append(memo[index])
            elif code == _STOP:
                if position != size:
                    raise _Fault(f"{size - position} bytes follow")
                if outer or len(stack) != 1:
                    raise _Fault("leaves something else than one tree")
                _check_depth(stack[0])
                return stack[0], leaves
            else:
                raise _Fault("not an operation of the safe form")
        raise _Fault(f"is the last of {OPERATION_LIMIT} operations, but not STOP")
    except _Fault as error:
        fault = str(error)
    except IndexError:  # of a pop or of stack[-1]; nothing else here can raise it
        fault = "takes more than the operations before it have left"
    except UnicodeDecodeError:
        fault = "not UTF-8"
    raise MetadataError(f"metadata refused at byte {at} ({_NAMES.get(data[at : at + 1], 'no operation')}): {fault}")


class _Fault(Exception):
    """Why an operation is refused; `load` adds which and where."""


_CUT_SHORT: Final = "its argument is cut short"


def _read_head(data: bytes) -> tuple[int, int]:
    """Where the operations proper begin, and how many went before them: PROTO and, where there is one, FRAME."""
    if data[:2] != pickle.PROTO + b"\x05":
        raise _Fault("does not begin with PROTO 5")
    if data[-1:] != pickle.STOP:
        raise _Fault("does not end with STOP")
    if data[2:3] != pickle.FRAME:
        return 2, 1
    if int.from_bytes(data[3:11], "little") != len(data) - 11:
        raise _Fault("has a frame that does not end where the metadata does")
    return 11, 2


def _set_items(target: Any, items: list[Any]) -> None:
    if type(target) is not dict:
        raise _Fault(f"sets items of {type_name(target)}")
    if len(items) % 2:
        raise _Fault("has a key without a value")
    for index in range(0, len(items), 2):
        key = items[index]
        if type(key) is not str or len(key) > KEY_LIMIT or key in target:
            raise _Fault(key_fault(key) or f"the key {quoted(key)} is there twice")
        target[key] = items[index + 1]


def _append(target: Any, values: list[Any]) -> None:
    if type(target) is not list:
        raise _Fault(f"appends to {type_name(target)}")
    target += values


def _leaf(persistent_id: Any, leaf_count: int) -> Leaf:
    if type(persistent_id) is not tuple or len(persistent_id) != 4:
        raise _Fault("a leaf is a tuple of index, kind, dtype and shape")
    index, kind, dtype, shape = persistent_id
    if type(index) is not int or index != leaf_count:
        raise _Fault(f"the next leaf has the index {leaf_count}, not {quoted(index)}")
    if fault := leaf_fault(kind, dtype, shape):
        raise _Fault(fault)
    return Leaf(kind, dtype, shape)


def _check_depth(tree: Any) -> None:
    level = [tree]
    for _ in range(DEPTH_LIMIT + 1):
        level = [
            child
            for value in level
            if type(value) in _CONTAINERS
            for child in (value.values() if type(value) is dict else value)
        ]
        if not level:
            return
    raise _Fault(f"a value lies within more than {DEPTH_LIMIT} containers")


def _unsigned(argument: bytes) -> int:
    return int.from_bytes(argument, "little")


def _signed(argument: bytes) -> int:
    if len(argument) > LONG_LIMIT:
        raise _Fault(f"an int of {len(argument)} bytes, the limit is {LONG_LIMIT}")
    return int.from_bytes(argument, "little", signed=True)


def _float(argument: bytes) -> object:
    return _BIG_ENDIAN_DOUBLE.unpack(argument)[0]


_BIG_ENDIAN_DOUBLE: Final = struct.Struct(">d")

# The allow-list. Everything else is refused: GLOBAL, REDUCE, BUILD, INST, OBJ, NEWOBJ and EXT run code, PUT takes an
# index of the sender's choice that an unpickler makes room for, DUP and POP would share containers and lose leaves.
# First what puts a constant on the stack: opcode -> bytes of its argument, whether these only count those that follow,
# and the constant that the argument stands for. Then, in `load`, what works on the stack.
_CONSTANTS: Final[dict[int, tuple[int, bool, Callable[[bytes], object]]]] = {
    pickle.SHORT_BINUNICODE[0]: (1, True, bytes.decode),
    pickle.BINUNICODE[0]: (4, True, bytes.decode),
    pickle.SHORT_BINBYTES[0]: (1, True, bytes),
    pickle.BINBYTES[0]: (4, True, bytes),
    pickle.BININT1[0]: (1, False, ord),
    pickle.BININT2[0]: (2, False, _unsigned),
    pickle.BININT[0]: (4, False, _signed),
    pickle.LONG1[0]: (1, True, _signed),
    pickle.BINFLOAT[0]: (8, False, _float),
    pickle.NONE[0]: (0, False, lambda _: None),
    pickle.NEWTRUE[0]: (0, False, lambda _: True),
    pickle.NEWFALSE[0]: (0, False, lambda _: False),
}
_RECALLS: Final = {pickle.BINGET[0]: 1, pickle.LONG_BINGET[0]: 4}  # by the bytes of their argument
_MARK: Final = pickle.MARK[0]
_TUPLE: Final = pickle.TUPLE[0]
_EMPTY_TUPLE: Final = pickle.EMPTY_TUPLE[0]
_TUPLE1: Final = pickle.TUPLE1[0]
_TUPLE2: Final = pickle.TUPLE2[0]
_TUPLE3: Final = pickle.TUPLE3[0]
_EMPTY_LIST: Final = pickle.EMPTY_LIST[0]
_APPEND: Final = pickle.APPEND[0]
_APPENDS: Final = pickle.APPENDS[0]
_EMPTY_DICT: Final = pickle.EMPTY_DICT[0]
_SETITEM: Final = pickle.SETITEM[0]
_SETITEMS: Final = pickle.SETITEMS[0]
_BINPERSID: Final = pickle.BINPERSID[0]
_MEMOIZE: Final = pickle.MEMOIZE[0]
_STOP: Final = pickle.STOP[0]

_CONTAINERS: Final = frozenset({dict, list, tuple})

# For errors: pickle keeps its opcodes as constants of one byte.
_NAMES: Final = {code: name for name, code in vars(pickle).items() if name.isupper() and type(code) is bytes}
