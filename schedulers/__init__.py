"""Noise schedulers, compiled into tables."""
