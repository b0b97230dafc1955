"""``python -m sobolev``, as torchrun starts it."""

from sobolev.cli import main

if __name__ == "__main__":
    main()
