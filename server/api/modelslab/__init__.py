"""The ModelsLab v6 image API."""
