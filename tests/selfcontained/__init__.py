"""Tests of the self-contained file: `make test-selfcontained`."""
