"""A search in virtual time: the same engine, with a cluster and trials that are computed."""
