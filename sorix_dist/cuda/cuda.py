"""The same under the path that sorix has for it."""

from sorix_dist.cuda import device_count, is_available

__all__ = ["device_count", "is_available"]
