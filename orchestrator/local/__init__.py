"""What this machine runs and holds: `trialfleet run` with its servers, logs, and the cache."""
