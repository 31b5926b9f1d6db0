"""The command line's verbs on studies that were handed in, a file for each kind of verb."""
