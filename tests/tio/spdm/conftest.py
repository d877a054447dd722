"""Finds the toy device that these tests share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
