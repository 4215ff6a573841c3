"""The database that the stores share."""
