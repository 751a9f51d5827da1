"""How fast the machine is, as ratios to a Python loop: `python -m bench`. It measures no real guest."""
