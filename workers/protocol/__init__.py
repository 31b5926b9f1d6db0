"""What crosses the wire between orchestrator and workers: messages, states, names, errors."""
