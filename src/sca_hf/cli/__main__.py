"""`python -m sca_hf.cli`, the same as `python -m sca_hf`."""

import sys

from ..__main__ import main


sys.exit(main())
