"""`python -m maskclip` is `maskclip`."""

from maskclip.cli import app

if __name__ == "__main__":
    app(prog_name="maskclip")
