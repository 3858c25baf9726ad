"""One function a pipeline step: files in, files out. DVC, Prefect and people run the same ones.

Each module here has ``run(root, params, domain, progress)``; ``base`` and ``report`` ignore ``domain``.
"""

STAGES = ("ingest", "points", "embed", "train", "base", "bank", "evaluate", "report")
"""The steps in the order of the graph."""

__all__ = ["STAGES"]
