"""What networks and methods are: the contract of a network, the record of a method, its recipe."""
