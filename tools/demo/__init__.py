"""`make demo`: from a git push to a pushed image, with real parts, on this machine."""
