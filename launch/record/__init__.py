"""What is known of runs: their folders, the processes that hold their locks, their jobs."""
