"""What the classification package's speed and results are measured with."""
