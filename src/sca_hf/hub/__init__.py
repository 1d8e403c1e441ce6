"""The Hub side: converting the authors' checkpoints."""
