"""Every random number is a function of named things: a seed, a step, a trial."""

import hashlib
from typing import Any


def seed_from(*parts: Any) -> int:
    """A 63-bit seed that depends on all parts: stable over machines, processes and Python versions."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1
