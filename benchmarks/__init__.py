"""Benchmarks: ``python -m benchmarks NAME [options]``; see README.md in this folder."""
