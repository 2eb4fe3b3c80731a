"""Explore every model of the shared memory, and its controls; with a model's name, print the traces of its violations.

python -m tests.support.memory_model [MODEL [CHANGED SITE OR STEP]]
"""

from __future__ import annotations

import sys

from .models import report, run

if len(sys.argv) == 1:
    print(report())
else:
    result = run(*sys.argv[1:3])
    print(f"{result.states} states, {result.finals} of them final")
    for text, trace in result.violations.items():
        print(f"\n{text}:", *trace, sep="\n    ")
