"""llmos vault service."""
