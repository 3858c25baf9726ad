"""``python -m flows.cli``: the same as ``samcl``."""

from flows.cli.main import run

run()
