"""`python -m experiments.sca_tiny`: trains the bundled model."""

from .recipe import main


main()
