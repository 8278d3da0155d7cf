"""What one trial trains: networks, methods, data, training, curves. Needs torch alone."""
