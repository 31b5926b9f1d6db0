"""Running one trial: the handle an objective sees, the lease it holds, checkpoints, objectives."""
