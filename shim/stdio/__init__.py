"""Standard streams of guest processes: the engine's fifos, log files and loggers and sockets to the guest."""
