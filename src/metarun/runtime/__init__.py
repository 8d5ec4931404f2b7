"""How it runs: recordings, threads, memory, processes, profiles."""
