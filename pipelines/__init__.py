"""What a model does with rows."""
