"""Numbers that journalctl finds the daemon's turning points by: `journalctl MESSAGE_ID=...`; docs/operating.md lists them."""

from __future__ import annotations

SERVING = "6f1c0a7be0f74b6f9b1f4c3a0d5e9a11"
ENGINE_DIED = "b2d1f5b7c3a94f0e8f5e27f0a4c6d812"
ENGINE_STUCK = "0c9b8a35e1d2476d9d1f7f6b52e3c413"
ROLLED_BACK = "e47a5c0d9f6b4b2c8a3d1e0f7b9c6514"
