"""HTTP in front of the bus: jobs, their events, models and inference. Keeps no state."""
