"""Python imports this by itself in every process of a crash test, as the tests put this folder on PYTHONPATH.

The program under test knows nothing of it. Only processes of the program are armed, and only once its gateways are there."""

import os
import sys

if "CRASH_AT" in os.environ and "orchestrator" in sys.orig_argv:
    from dying import arm_after_import

    arm_after_import(os.environ["CRASH_AT"], os.environ["CRASH_MARKS"], sys.orig_argv)
