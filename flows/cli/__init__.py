"""The command line: small files, heavy imports inside functions."""
