"""Hubs and file servers: which of their faults will pass, and what is read from them."""
