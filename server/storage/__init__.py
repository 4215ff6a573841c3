"""Picture bytes."""
