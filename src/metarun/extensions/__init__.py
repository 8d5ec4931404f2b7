"""Options and classes from outside the package: what the user names on the command line or has installed, and nothing else."""
