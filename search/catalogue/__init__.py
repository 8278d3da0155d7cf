"""What can be asked without a study: the methods and data sets there are, whether this machine is ready."""
