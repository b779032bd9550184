"""llmos gateway service."""
