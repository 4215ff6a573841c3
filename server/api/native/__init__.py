"""latentd's own API: jobs of one's own, under /v1."""
