"""What is handed in, checked before anything is enqueued."""
