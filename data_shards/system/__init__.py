"""The operating system as it is: files, locks, signals, streams and processes."""
