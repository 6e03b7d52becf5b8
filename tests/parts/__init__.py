"""Real services that tests and the demo start on this machine. The code that starts one stops it."""
