"""`python -m nlc`: the command line."""

from nlc.cli import main

main()
