"""An object whose class exists only in the other process."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from shmserve.codec import Decoder, SlotMemory
from shmserve.errors import UnsupportedType


def test_an_object_of_an_absent_class_is_named_by_place_and_other_objects_are_not_asked() -> None:
    made = (
        "import sys, types\n"
        "module = types.ModuleType('arm_parts'); sys.modules['arm_parts'] = module\n"
        "exec('class Pose(dict):\\n    pass\\nclass Grip:\\n    def __init__(self): self.width = 3', module.__dict__)\n"
        "import numpy as np\n"
        "from shmserve.codec import Encoder, SlotMemory\n"
        "memory = SlotMemory(np.zeros(4096, np.uint8), np.zeros(4096, np.uint8))\n"
        "encoded = Encoder(allow_pickle=True).encode({'parts': [1, module.Grip()]}, memory)\n"
        "sys.stdout.buffer.write(memory.metadata[:encoded.metadata_bytes].tobytes().ljust(4096, b'\\0'))\n"
        "sys.stdout.buffer.write(memory.payload.tobytes())\n"
        "print(*encoded, file=sys.stderr)\n"
    )
    ran = subprocess.run([sys.executable, "-c", made], capture_output=True, check=True)
    memory = SlotMemory(*(np.frombuffer(ran.stdout[at : at + 4096], np.uint8).copy() for at in (0, 4096)))
    schema, metadata_bytes, payload_bytes, _ = ran.stderr.split()

    with pytest.raises(UnsupportedType) as refused:
        Decoder(allow_pickle=True).decode(memory, int(schema), int(metadata_bytes), int(payload_bytes), True)

    text = str(refused.value)
    assert text.startswith(
        "action['parts'][1]: an object of type arm_parts.Grip cannot be carried: its class cannot be"
    )
    assert "No module named 'arm_parts'" in text and "put it in a module that both can import" in text
