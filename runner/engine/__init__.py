"""The backtest engine: numpy and numba, no queue, no network."""
