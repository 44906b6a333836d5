"""``python -m kd_det``: the command ``kd-det``."""

from kd_det.cli import main

if __name__ == "__main__":
    main()
