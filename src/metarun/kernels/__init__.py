"""What is fast and need not be understood: one door, ``interface`` and ``select``; plain torch stands behind the same door."""
