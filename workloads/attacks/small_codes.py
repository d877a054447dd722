"""What guests of one page of code run: the laboratory acts for it, by what it is."""

from __future__ import annotations

VICTIMS_CODE = b"asks its owner for a secret and keeps it"
ATTACKERS_CODE = b"asks its owner for a secret and tells it"
