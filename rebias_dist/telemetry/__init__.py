"""What a run reports while it trains: metrics, TensorBoard, progress, speed, warnings."""
