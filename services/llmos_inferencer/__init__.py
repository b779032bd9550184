"""llmos inferencer service."""
