"""Tests of the export use the runtime's tiny bundle."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "runtime"))
