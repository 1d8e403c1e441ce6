"""What we claim, measured: one script for each table of docs/experiments.md."""
