"""What is measured of a trained network beside its curve: paths, gates, augmented copies, samples."""
