"""What a victim's owner sends to its guest, and to nobody else."""

from __future__ import annotations

import hashlib

SECRET = hashlib.shake_128(b"what an owner sends to its guest").digest(64)
IMPOSTOR = "impostor"
"""A guest whose code is not the victim's."""
