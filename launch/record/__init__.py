"""Facts about runs: their folders, the processes that hold their locks, their jobs."""
