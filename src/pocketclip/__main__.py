"""`python -m pocketclip`."""

from pocketclip.cli import main

if __name__ == "__main__":
    main()
