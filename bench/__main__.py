"""All benchmarks, results written to `bench/results`."""

from bench.memories import main

main()
