"""A client of 2023: query string, empty body, ``key`` header; its host name is in the code, so connections are led."""

import http.client
import json
import os
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import StableDiffusionAPI
from StableDiffusionAPI import Community, Text2Img

http.client.HTTPSConnection = lambda host: http.client.HTTPConnection(urlsplit(os.environ["URL"]).netloc)
StableDiffusionAPI.Key(os.environ["KEY"])
Text2Img("a red bridge", 512, 512, "realtime.png")
Community.Text2Img("sd15", "a red bridge", "community.png")


def first_bytes(picture: Path) -> str:
    """The library downloads in threads and tells nobody when it has."""
    for _ in range(900):
        time.sleep(0.1)
        if picture.exists() and picture.stat().st_size:
            return picture.read_bytes()[:8].hex()
    return "nothing came"


found = {name: first_bytes(Path(f"{name}.png")) for name in ("realtime", "community")}
for thread in threading.enumerate():
    # They print, too.
    if thread is not threading.main_thread():
        thread.join()
print()
print(json.dumps(found))
