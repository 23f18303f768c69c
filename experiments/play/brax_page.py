"""An episode of Brax as a page of its own: Brax's viewer, and the return beside it.

Brax writes pages that load three.js and lil-gui from elsewhere; this one needs no network. What
Brax's viewer imports of the two is in `three.js.gz` (MIT licence, inside), made by

    npm install three@0.150.1 lil-gui@0.18.0 esbuild@0.28.2
    npx esbuild entry.js --bundle --minify --format=esm --legal-comments=none | gzip -9n

from an `entry.js` that exports from 'three' every name X that Brax's files use as THREE.X, and
`OrbitControls` from 'three/examples/jsm/controls/OrbitControls.js' and `GUI` from 'lil-gui'. The
versions are those that Brax 0.14 names. The viewer itself is that of the installed Brax.
"""

import base64
import gzip
import importlib.resources
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from html import escape

_VIEWER = ("viewer", "animator", "selector", "system")
_LIBRARIES = ("three", "three/addons/controls/OrbitControls.js", "lilgui")

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
  html, body {{ margin: 0; height: 100%; font: 15px system-ui, sans-serif; }}
  #viewer {{ height: 100vh; overflow: hidden; }}
  #said {{ position: absolute; left: 0; top: 0; padding: 8px 14px; color: #fff;
    background: #26323fcc; font-variant-numeric: tabular-nums; white-space: pre; }}
</style>
</head>
<body>
<div id="viewer"></div>
<div id="said">{title}
<span id="line">{last_line}</span></div>
<script>
const packed = "{packed}";
(async () => {{
  const bytes = Uint8Array.from(atob(packed), c => c.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const content = await new Response(unpacked).json();
  const urls = content.sources.map(
    text => URL.createObjectURL(new Blob([text], {{type: "text/javascript"}})));
  const map = document.createElement("script");
  map.type = "importmap";
  map.textContent = JSON.stringify({{imports: Object.fromEntries(
    Object.entries(content.modules).map(([name, i]) => [name, urls[i]]))}});
  document.head.append(map);
  const {{Viewer}} = await import("brax/viewer");
  const viewer = new Viewer(document.getElementById("viewer"), JSON.parse(content.system));
  viewer.setSize();
  const line = document.getElementById("line"), last = content.lines.length - 1;
  (function follow() {{
    requestAnimationFrame(follow);
    const now = Math.round(viewer.animator.time / content.seconds);
    line.textContent = content.lines[Math.max(0, Math.min(last, now))];
  }})();
}})().catch(error => {{
  document.getElementById("line").textContent += "\\nThis browser cannot show it: " + error;
}});
</script>
</body>
</html>
"""


def _modules() -> tuple[list[str], Mapping[str, int]]:
    """Sources of all modules, and which of them each name means."""
    three = importlib.resources.files("experiments.play").joinpath("three.js.gz").read_bytes()
    sources = [gzip.decompress(three).decode()]
    names = dict.fromkeys(_LIBRARIES, 0)
    folder = importlib.resources.files("brax").joinpath("visualizer", "js")
    for name in _VIEWER:
        text = folder.joinpath(f"{name}.js").read_text()
        names[f"brax/{name}"] = len(sources)
        sources.append(re.sub(r"from '\./(\w+)\.js'", r"from 'brax/\1'", text))
    return sources, names


def page(title: str, lines: Sequence[str], system: str, seconds: float) -> bytes:
    """An HTML page that shows the bodies and plays what they did.

    Args:
      title: above the lines.
      lines: what is said of each moment.
      system: bodies and moments, in the JSON of Brax's viewer.
      seconds: between two moments.
    """
    sources, names = _modules()
    content = {
        "sources": sources,
        "modules": names,
        "system": system,
        "lines": lines,
        "seconds": seconds,
    }
    packed = base64.b64encode(zlib.compress(json.dumps(content).encode(), 9)).decode()
    text = _PAGE.format(title=escape(title), last_line=escape(lines[-1]), packed=packed)
    return text.encode()
