"""Prefect tasks and what they need: the workspace, DVC, MLflow, the server. Nothing of it is machine learning."""
