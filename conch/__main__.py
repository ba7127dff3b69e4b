"""`python -m conch` is the same as `conch`."""

from conch.cli.main import main

if __name__ == "__main__":
    main()
