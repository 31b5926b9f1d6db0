"""Drives submitted studies: asks, enqueues, collects, tells, and reaps."""
