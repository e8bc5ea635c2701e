"""The command line. `main` is the console script `nlc`."""


def main() -> None:
    """Run the command that the arguments of the process name, and exit with its code."""
    from nlc.cli.app import run

    run()
