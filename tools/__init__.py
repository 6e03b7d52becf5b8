"""Programs for those who work on Kiln: the demonstration, and what is made from other files."""
