"""A run as people start it, take it up again and test it: from the command line and from Python."""
