"""What is alive on a host: its processes, who watches them, and who cleans up after them."""
