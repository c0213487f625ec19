"""Everything there is to measure on a GPU, in one command of at most eight minutes: `make gpu`, see docs/gpu.md."""
