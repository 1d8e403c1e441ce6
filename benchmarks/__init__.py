"""Speed and memory against the library's plain modules: `python -m benchmarks --help`, or `make bench`."""
