"""A study in one file: what was asked, what came out, and where the time went."""
