"""Programs that others wrote, each in an environment of its own: built once by pip from its lock file, then kept.

They exclude each other's dependencies, and ours. `.outsiders/` in the checkout (or `OUTSIDERS_HOME`) keeps them, named by
what they were made from, so that a changed lock file means a new one.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = ("replicate1", "replicate2", "webhooks", "cog")
BUILD_TIMEOUT_S = 150

_UNREACHABLE = re.compile(r"connection broken by|max retries exceeded|proxy ?error|timed out|name resolution",
                          re.IGNORECASE)


class IndexAway(Exception):
    """The package index cannot be reached, so an environment cannot be built."""


def environment(name: str, *, home: Path | None = None, lock: Path | None = None, env: Mapping[str, str] | None = None) -> Path:
    """The Python of the environment `name`, built first if there is none for its lock file and this Python.

    Processes that ask at the same time wait for the first one. Raises IndexAway, or RuntimeError with pip's words."""
    home = home or Path(os.environ.get("OUTSIDERS_HOME") or HERE.parents[1] / ".outsiders")
    lock = lock or HERE / f"requirements-{name}.lock"
    made_from = lock.read_bytes() + f"{sys.version} {sys.base_prefix}".encode()
    folder = home / f"{name}-{sha256(made_from).hexdigest()[:12]}"
    home.mkdir(parents=True, exist_ok=True)
    (home / ".gitignore").write_text("*\n")
    with (home / f"{name}.lock").open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _build(folder, lock=lock, env=dict(os.environ if env is None else env))
            (folder / "ready").touch()
    return folder / "bin" / "python"


def _build(folder: Path, *, lock: Path, env: dict[str, str]) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    install = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--no-compile", "--no-input",
               "--retries", "1", "--disable-pip-version-check", "--require-hashes", "-r", lock]
    done = subprocess.run(install, env=env, text=True, capture_output=True, timeout=BUILD_TIMEOUT_S, check=False)
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-6:])
        if _UNREACHABLE.search(done.stderr):
            raise IndexAway(f"the package index cannot be reached, so {lock.name} cannot be installed:\n{last}")
        raise RuntimeError(f"pip could not install {lock.name}; resolve it anew with `scripts/outsiders lock`:\n{last}")


if __name__ == "__main__":
    for wanted in NAMES:
        sys.stdout.write(f"{wanted}: {environment(wanted)}\n")
