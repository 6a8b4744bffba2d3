"""What a run reports while it trains: metrics, trackers, progress, speed, warnings."""
