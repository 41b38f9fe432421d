"""`python -m pocketclip`."""

from pocketclip.cli.main import main

if __name__ == "__main__":
    main()
