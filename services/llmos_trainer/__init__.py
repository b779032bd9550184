"""llmos trainer service."""
