"""Processes: how ranks are started, watched and ended. No tensors."""
