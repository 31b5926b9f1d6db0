"""The web page: the fleet, its studies and their trials in a browser, and actions on them.

Invariant: it reads what commands read, and nothing but an action with the token writes anything.
"""
