"""Requests in, outputs out: no HTTP, no jobs, no storage."""
