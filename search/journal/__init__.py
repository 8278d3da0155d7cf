"""The events of a study in a database, and the lease that names its one writer."""
