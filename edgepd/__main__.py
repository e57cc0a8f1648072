"""Run the command line as `python -m edgepd`."""

from edgepd.cli import main

if __name__ == "__main__":
    main()
