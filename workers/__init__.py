"""What lives in a worker process. Start one with `runner worker`."""
