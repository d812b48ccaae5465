"""The only place that imports Ray: actor shells, their wiring, the run's handle."""
