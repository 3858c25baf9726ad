"""What ``samcl init`` writes into a new workspace: ``dvc.yaml``, ``params.yaml`` and ``prefect.toml``."""
