"""Write docs/lifecycle.md: the path to write is the argument."""

import sys
from pathlib import Path

from orchestrator.core.drawing import page

Path(sys.argv[1]).write_text(page(), encoding="utf-8")
