"""The main job from end to end: `python -m nlc.demo`, or `make demo`."""
