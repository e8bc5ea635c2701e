"""Side-by-side measurements against peers: `python -m bench`; results are kept as data under `results/`."""
