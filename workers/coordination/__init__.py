"""The fleet's shared truth in Redis: trial leases, the process registry, inboxes; all by script."""
