"""llmos exporter service."""
