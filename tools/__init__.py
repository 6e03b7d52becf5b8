"""Programs for developers of Kiln: the demonstration, and generators of files that derive from others."""
