"""``python -m memcli``."""

from memcli.cli.entry import run

if __name__ == "__main__":
    run()
