"""What `metarun compare` is made of: reading run folders, grouping over seeds, pairing, tables and plots.
Nothing here imports torch or pydantic: a sweep of hundreds of runs is compared in a second or two."""
