"""What is right and wrong with this machine and environment for training on several ranks."""

from sorix_dist.launch.doctor.finding import Finding, Level
from sorix_dist.launch.doctor.page import examine

__all__ = ["Finding", "Level", "examine"]
