"""`trialfleet doctor`: what is wrong with a fleet, a host, an installation, each with its fix."""
