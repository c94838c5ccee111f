"""`python -m nfknock` is the same program as `nfknock`."""

from nfknock.cli import main

if __name__ == "__main__":
    main()
