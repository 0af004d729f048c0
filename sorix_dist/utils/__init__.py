"""What surrounds training."""
