"""`make bench`: what Kiln costs, each figure beside that of the bare thing, measured in turns in the same run."""
