"""Trainers of other libraries as trials: each module needs its library, and nothing else does."""
