"""`python -m howsure`, the same as `howsure`."""

from howsure.cli import main

if __name__ == "__main__":
    main()
