"""Real parts that tests and the demo start on this machine, each stopped by whoever started it."""
