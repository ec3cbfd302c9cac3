"""BFCL v3 and v4: benchmarks on the official checkers, and the official averages."""
