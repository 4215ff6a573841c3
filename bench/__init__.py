"""Load generators, baselines and their results. Figures belong here, not into tests."""
