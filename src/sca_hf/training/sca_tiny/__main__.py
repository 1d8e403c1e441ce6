"""`python -m sca_hf.training.sca_tiny`: trains the bundled model."""

from .recipe import main


main()
