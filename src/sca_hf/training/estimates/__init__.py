"""What memory a run takes, told without running it."""
