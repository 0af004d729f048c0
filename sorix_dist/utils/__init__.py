"""Data loading and checkpointed backwards."""
