"""Whether what serves still does what was published: drift, groups, latency, replicas."""
