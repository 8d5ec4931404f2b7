"""What is fast and need not be understood. The one door is ``select``; plain torch stands behind the same door. See docs/speed.md."""
