"""The scheduler: checks jobs, finds hardware for their tasks, and keeps deployments on living nodes."""
