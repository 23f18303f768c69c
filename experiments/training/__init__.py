"""How a run trains: the agent built for the devices there are, programs, and the loop."""
