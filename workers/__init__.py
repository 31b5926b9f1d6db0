"""The worker side of trialfleet: what runs on a GPU box, and the protocol it speaks."""
