"""``python -m streamline``: the command line, for launchers that expect a module."""

from __future__ import annotations

from streamline.cli.main import main

if __name__ == "__main__":
    main()
