"""llmos: an operating system for language models, as small services on a NATS JetStream bus."""

__version__ = "0.1.0"
