"""Checkpoints that are whole or not there, and what run they belong to."""
