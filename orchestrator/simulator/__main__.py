"""`python -m orchestrator.simulator`: a local stand-in for Replicate."""

import sys

from orchestrator.simulator.serve import main

sys.exit(main())
