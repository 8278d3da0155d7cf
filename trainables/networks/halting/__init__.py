"""Networks that halt: adaptive computation time for images and for positions."""
