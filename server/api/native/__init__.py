"""latentd's own API: jobs of one's own, and questions about pictures, under /v1."""
