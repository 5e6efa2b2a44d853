"""How does the explorer get into a notebook: a widget whose state is what the page shows, and whose messages are clicks?

It needs the extra `notebook`; whoever imports this module finds out.
"""

from typing import Any

import anywidget
import traitlets

from avlens.views import panel


class Widget(anywidget.AnyWidget):  # type: ignore[misc]
    """What `panel` makes of an explorer, in a notebook."""

    spec = traitlets.Dict().tag(sync=True)
    view = traitlets.Dict().tag(sync=True)
    _esm = panel.script()
    _css = panel.styles()

    def mime(self) -> dict[str, Any]:
        """What a notebook needs to show it."""
        found = self._repr_mimebundle_()
        data: dict[str, Any] = found[0] if isinstance(found, tuple) else dict(found or {})
        return {kind: value for kind, value in data.items() if kind != "text/plain"}
