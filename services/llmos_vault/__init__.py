"""vault: keeps the tenants' keys, hands them to whom policy allows, and signs model versions."""
