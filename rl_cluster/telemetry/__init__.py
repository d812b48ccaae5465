"""What a run says about itself: metrics, summary, incidents, the live display and the report.

Nothing is imported here, so that a part which needs one module does not load the others.
"""
