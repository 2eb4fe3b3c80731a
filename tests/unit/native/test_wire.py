"""The wire in C (native/core/wire.h) against layout.py and protocol.py, name by name."""

from __future__ import annotations

import pytest

from shmserve import layout, protocol
from tests.support.native import NATIVE, core

pytestmark = pytest.mark.skipif(not NATIVE, reason="installed without a compiler")


def described_in_python() -> dict[str, int]:
    """Return each offset, size, flag and constant that the two modules name, as the native core's table has them."""
    table: dict[str, int] = {}
    for module in (layout, protocol):
        for name, value in vars(module).items():
            if isinstance(value, layout.Words):
                table[name] = value.size
                table.update({f"{name}.{word}": value.offset(word) for word in value.names})
            elif name.isupper() and isinstance(value, int):
                table[name] = value
    for kind in (protocol.Kind, protocol.Status):
        table.update({f"{kind.__name__}.{member.name}": int(member) for member in kind})
    flags = {name: bit for name, bit in vars(protocol.Flag).items() if name.isupper()}
    return table | {f"Flag.{name}": bit for name, bit in flags.items()}


def test_the_wire_in_c_has_the_same_names_and_numbers() -> None:
    assert core.wire() == described_in_python()


def test_the_comparison_has_each_kind_of_entry() -> None:
    names = {"MAGIC", "WIRE_VERSION", "MAX_PAYLOAD_BYTES", "HEADER.epoch", "COUNTER_LINE.processor", "REQUEST.write_id"}

    assert names | {"REPLY", "REPLY.attempts", "Kind.RESET", "Flag.CLAMPED", "Status.STOPPING"} <= set(core.wire())
