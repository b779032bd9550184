"""llmos hw-agent service."""
