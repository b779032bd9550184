"""llmos cli service."""
