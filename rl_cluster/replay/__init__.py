"""Experience kept for learning: blocks, their index, and the gather. Pure numpy: no Ray, no torch."""
