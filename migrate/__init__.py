"""From another service's scores to this server: what to change, and what will differ."""
