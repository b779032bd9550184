"""The audit service: every event of the bus, in a log that anybody can verify."""
