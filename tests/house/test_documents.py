"""The documents tell the truth: samples that load, commands that exist, and no word that does not belong here."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.apps.cli.commands import app
from orchestrator.gateways import jobfile

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_readme_s_job_loads(tmp_path: Path):
    """The job file shown to newcomers is valid as it stands."""
    (sample,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "product-shots.yaml"
    path.write_text(sample, "utf-8")
    assert jobfile.load(path).job.unsupported() == []


def test_every_command_is_documented():
    """Whatever `orchestrator --help` lists stands in the README too."""
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    missing = [name for name in names - {"version", "worker"} if not re.search(rf"\b{name}\b", README)]
    assert missing == []


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda path: path.stem)
def test_example_jobs_load(path: Path):
    """Every example is a valid job that this version runs."""
    assert jobfile.load(path).job.unsupported() == []


def test_help_is_quick_and_whole():
    """`orchestrator --help` lists the commands."""
    done = subprocess.run([sys.executable, "-m", "orchestrator", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    for name in ("run", "plan", "status", "demo", "simulate"):
        assert name in done.stdout


def test_links_lead_somewhere():
    """Every relative link of every page names a file that exists."""
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_tests_named_in_the_guarantees_exist():
    """A promise names its tests; they are there."""
    text = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
    for pattern in re.findall(r"`(tests/[^`]+)`", text):
        assert list(ROOT.glob(pattern)), pattern
