"""`python -m refbfr_core.cli` does what the `refbfr` script does, also where the script is not on the path."""

from refbfr_core.cli.app import main

if __name__ == "__main__":
    main()
