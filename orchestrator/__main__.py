"""`python -m orchestrator`: the same as the command `orchestrator`."""

from orchestrator.apps.cli.commands import main

if __name__ == "__main__":
    main()
