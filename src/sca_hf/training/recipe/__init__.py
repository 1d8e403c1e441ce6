"""Training runs written down as YAML."""
