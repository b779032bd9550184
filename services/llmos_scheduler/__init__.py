"""llmos scheduler service."""
