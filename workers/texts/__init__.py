"""Labelled texts in files: the one reader of what submission checks and training reads."""
