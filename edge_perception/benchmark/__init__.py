"""What ``edge-perception bench`` runs: the graph beside its baselines, on this machine."""
