"""Every registered version is an MLflow pyfunc model: the bank, and the code that answers requests with it."""
