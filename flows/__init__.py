"""Prefect flows and the command line: what runs when, and what a person sees of it."""
