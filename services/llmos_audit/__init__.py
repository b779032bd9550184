"""llmos audit service."""
