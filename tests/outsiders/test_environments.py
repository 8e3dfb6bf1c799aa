"""How outsiders are built: once, whoever asks, anew when their lock file changes, and what happens without an index."""

import os
import socket
import subprocess
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.outsiders.conftest import python_of
from tests.outsiders.environments import IndexAway, environment


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A package of one module, which needs nothing and no index."""
    path = tmp_path / "guest-1.0-py3-none-any.whl"
    files = {"guest.py": "WORD = 'hello'\n", "guest-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: guest\nVersion: 1.0\n",
             "guest-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    record = "".join(f"{name},,\n" for name in [*files, "guest-1.0.dist-info/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in (files | {"guest-1.0.dist-info/RECORD": record}).items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def place(tmp_path: Path, wheel: Path) -> dict[str, Path]:
    """A home of its own, and a lock file that asks for the package."""
    lock = tmp_path / "guest.lock"
    lock.write_text(f"guest @ {wheel.as_uri()} --hash=sha256:{sha256(wheel.read_bytes()).hexdigest()}\n")
    return {"home": tmp_path / "home", "lock": lock}


@pytest.fixture
def no_index(tmp_path: Path) -> dict[str, Any]:
    """A lock file that needs an index, and a pip that finds nobody where its index should be."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    lock = tmp_path / "absent.lock"
    lock.write_text(f"no-such-guest==1.0 --hash=sha256:{'0' * 64}\n")
    env = {name: value for name, value in os.environ.items() if not name.upper().startswith("PIP_")}
    env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": f"http://127.0.0.1:{port}/simple", "NO_PROXY": "127.0.0.1"}
    return {"home": tmp_path / "home", "lock": lock, "env": env}


def test_built_once_for_all_who_ask(place: dict[str, Path]) -> None:
    """Two who ask at the same time get one environment, which works; a third finds it as it was."""
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: environment("guest", **place), range(2))
    assert first == second
    said = subprocess.run([first, "-I", "-c", "import guest, sys; sys.stdout.write(guest.WORD)"], capture_output=True, check=True)
    assert said.stdout == b"hello"
    before = (first.parents[1] / "ready").stat().st_mtime_ns
    assert environment("guest", **place) == first
    assert (first.parents[1] / "ready").stat().st_mtime_ns == before


def test_a_changed_lock_file_is_another_environment(place: dict[str, Path]) -> None:
    """What is installed is what the lock file says today."""
    first = environment("guest", **place)
    place["lock"].write_text(place["lock"].read_text() + "# changed\n")
    assert environment("guest", **place) != first


def test_what_is_half_built_is_built_anew(place: dict[str, Path]) -> None:
    """An environment whose making was interrupted is not taken for a whole one."""
    python = environment("guest", **place)
    (python.parents[1] / "ready").unlink()
    (python.parents[1] / "rubbish").touch()
    assert environment("guest", **place) == python
    assert not (python.parents[1] / "rubbish").exists()


def test_a_false_hash_is_an_error_everywhere(place: dict[str, Path]) -> None:
    """Other bytes than the locked ones are refused, and that is no reason to skip."""
    place["lock"].write_text(place["lock"].read_text().partition("sha256:")[0] + f"sha256:{'0' * 64}\n")
    with pytest.raises(RuntimeError, match=r"scripts/outsiders lock"):
        python_of("guest", on_ci=False, **place)


@pytest.mark.parametrize(("on_ci", "raised"), [(True, IndexAway), (False, pytest.skip.Exception)])
def test_without_an_index(no_index: dict[str, Any], on_ci: bool, raised: Callable[..., BaseException]) -> None:
    """On a laptop without network the tests are skipped with a sentence; on CI that is a failure."""
    with pytest.raises(raised, match="the package index cannot be reached"):  # type: ignore[call-overload]
        python_of("absent", on_ci=on_ci, **no_index)
