"""The only place that imports Ray: actor shells around plain parts, their wiring, the run's handle."""
