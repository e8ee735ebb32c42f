"""The built-in engine: numpy and numba alone, no queue, no I/O."""
