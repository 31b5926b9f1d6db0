"""What lies on a disk: results and checkpoints, scratch directories, shared memory; never torch."""
