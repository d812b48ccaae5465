"""A run in a notebook: tables, curves, pictures and a panel of levers.

Nothing is imported here, so that `rl_cluster.attach` needs no extra until something is drawn.
"""
