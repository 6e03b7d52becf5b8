"""Measure what Kiln costs, each figure next to that of the bare tool, in alternation within one run (`make bench`)."""
