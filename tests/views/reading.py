"""What a page carries, as a browser would read it."""

import gzip
import json
import re

from avlens.views.packing import LETTERS


def unpacked(text):
    """What `packed` was given, bit by bit."""
    n, letters = text.split(":", 1)
    numbers = [LETTERS.index(a) * 91 + LETTERS.index(b) for a, b in zip(letters[::2], letters[1::2], strict=True)]
    bits = "".join(f"{number:013b}" for number in numbers)
    return bytes(int(bits[8 * i : 8 * i + 8], 2) for i in range(int(n)))


def held(html, which, nth=0):
    """The JSON of a figure (`data-figure`) or view (`data-view`) of some HTML."""
    found = re.findall(f"{which}='[^']*'[^>]*>([^<]*)</script>", html)
    return json.loads(gzip.decompress(unpacked(found[nth])))
