"""Write config/job.schema.json: the path to write is the argument."""

import json
import sys
from pathlib import Path

from orchestrator.core.job import job_schema

Path(sys.argv[1]).write_text(json.dumps(job_schema(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
