"""What commands do before and after the work of others: arguments and exit codes."""

import pytest
from typer.testing import CliRunner

from orchestrator.apps.cli.commands import app


@pytest.mark.parametrize("arguments", [["--failure-rate", "7"], ["--port", "99999"]])
def test_a_stand_in_that_cannot_begin(arguments: list[str]):
    """Its exit code is that of the command."""
    done = CliRunner().invoke(app, ["simulate", *arguments])
    assert done.exit_code == 2
    assert "simulator setting" in done.output
