"""Token log-probabilities of branches."""
