"""A study in MLflow: its runs, the process that uploads them, the server's addresses."""
