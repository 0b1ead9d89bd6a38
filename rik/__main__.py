"""``python -m rik``: the same as the installed script ``rik``."""

from rik.cli.main import main

if __name__ == "__main__":
    main()
