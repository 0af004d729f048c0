"""Conveniences around the training loop, which stays the user's."""
