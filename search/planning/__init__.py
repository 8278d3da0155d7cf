"""What is decided before a study trains: its creation, earlier studies, repeats, forecasts, shares of nodes."""
