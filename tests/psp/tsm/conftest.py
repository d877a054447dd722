"""Lets the tests of this folder import its bench, and the slot of the devices' tests."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "tio")]
