"""The commands of the command line, by what they are about. Heavy imports wait inside functions."""
