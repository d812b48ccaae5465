"""The mathematics: networks, losses, agents. Pure torch: no loops over data, no Ray."""
