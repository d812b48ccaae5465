"""Experience kept for learning: blocks, their index, the gather. No Ray, no torch."""
