"""The system's clipboard by its own program; the terminal's (OSC 52) besides, which goes through SSH."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence

_WAIT_S = 2.0


def program(environment: Mapping[str, str]) -> Sequence[str] | None:
    """The command that takes what is to be copied on its standard input; None where there is none."""
    candidates: list[tuple[str, ...]] = []
    if sys.platform == "darwin":
        candidates.append(("pbcopy",))
    if sys.platform == "win32" or environment.get("WSL_DISTRO_NAME"):
        candidates.append(("clip.exe",))
    if environment.get("WAYLAND_DISPLAY"):
        candidates.append(("wl-copy",))
    if environment.get("DISPLAY"):
        candidates += [("xclip", "-selection", "clipboard"), ("xsel", "--clipboard", "--input")]
    path = environment.get("PATH")
    return next((each for each in candidates if shutil.which(each[0], path=path)), None)


def copy_to_system(text: str) -> bool:
    """Whether the system's clipboard has the text now."""
    found = program(os.environ)
    if found is None:
        return False
    try:
        done = subprocess.run(
            found,
            input=text.encode("utf-8", "replace"),
            stdout=subprocess.DEVNULL,  # xclip stays behind to serve the text, and would hold a pipe open
            stderr=subprocess.DEVNULL,
            timeout=_WAIT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
