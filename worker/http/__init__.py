"""The worker's own HTTP port: probes, metrics, and the operator's console. Nothing of it is needed for scoring."""
