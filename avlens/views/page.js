// What a page, or an output of a notebook, does with what it carries: inflates it, draws it, and follows the reader's theme.
window.avlens ??= (() => {
  const loading = {}, drawn = [];

  // 13 bits are two of 91 characters: all that can be seen but ", \\ and <. Their number of bytes comes first.
  const unpacked = text => {
    const at = text.indexOf(":") + 1, bytes = new Uint8Array(Number(text.slice(0, at - 1)));
    const number = code => code - 33 - (code > 34) - (code > 60) - (code > 92);
    for (let i = at, n = 0, held = 0, bits = 0; n < bytes.length; i += 2) {
      held = (held << 13) | (number(text.charCodeAt(i)) * 91 + number(text.charCodeAt(i + 1)));
      for (bits += 13; bits >= 8 && n < bytes.length; ) bytes[n++] = held >> (bits -= 8);
      held &= (1 << bits) - 1;
    }
    return bytes;
  };

  const inflated = async text => {
    return new Response(new Blob([unpacked(text)]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };

  // A script that is in the page as text runs once, when it is first needed.
  const script = (name, root) => loading[name] ??= window[name] ? Promise.resolve() : (async () => {
    const run = document.createElement("script");
    run.textContent = await inflated(root.querySelector(`script[data-script='${name}']`).textContent);
    document.head.append(run);
  })();

  const settings = () => loading.settings ??= (async () => JSON.parse(await inflated(document.getElementById("avlens-settings").textContent)))();

  const isDark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

  const turned = (value, night) => {
    if (typeof value === "string") return night[value] ?? night[value.toUpperCase()] ?? value;
    if (Array.isArray(value)) return value.map(one => turned(one, night));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, name === "bdata" || name === "template" || name === "source" ? one : turned(one, night)]));
  };

  const plot = async (box, { data, layout }) => {
    const { config, night, ground, light, dark } = await settings();
    // Plotly writes into what it is given, so that each theme begins with a copy.
    if (!isDark()) return Plotly.react(box, structuredClone(data), structuredClone({ template: light, ...layout }), config);
    const themed = { plot_bgcolor: ground, ...turned(layout, night), template: dark, paper_bgcolor: ground };
    return Plotly.react(box, turned(data, night), themed, config);
  };

  const figure = async (held, root) => {
    await script("Plotly", root);
    const box = document.getElementById(held.dataset.figure), spec = JSON.parse(await inflated(held.textContent));
    await plot(box, spec);
    drawn.push(() => plot(box, spec));
    box.dispatchEvent(new CustomEvent("avlens-drawn"));
  };

  const view = async (held, root) => {
    await script("CircuitsVis", root);
    const { view: id, component, atOnce } = held.dataset, n = Number(atOnce);
    const props = JSON.parse(await inflated(held.textContent)), box = document.getElementById(id);
    if (!n) return CircuitsVis.render(id, CircuitsVis[component], props);
    const menu = document.getElementById(`${id}-heads`);
    const draw = first => {
      const part = list => list.slice(first, first + n), fresh = document.createElement("div");
      fresh.id = `${id}-${first}`;
      box.replaceChildren(fresh);
      CircuitsVis.render(fresh.id, CircuitsVis[component], { ...props, attention: part(props.attention), attentionHeadNames: part(props.attentionHeadNames) });
    };
    menu.addEventListener("change", () => draw(Number(menu.value)));
    draw(0);
  };

  const breath = () => new Promise(done => setTimeout(done));

  const draw = async root => {
    for (const held of root.querySelectorAll("script[data-figure], script[data-view]")) {
      await breath();
      try {
        await (held.dataset.figure ? figure : view)(held, root);
      } catch (problem) {
        const told = document.createElement("p");
        told.textContent = window.DecompressionStream ? `This could not be drawn: ${problem}` : "This needs a browser of 2023 or later.";
        held.before(told);
        console.error(problem);
      }
    }
    (root.documentElement ?? root).dataset.drawn = "";
  };

  // All of a page, after its words have been painted; a page in the background is painted when it is looked at.
  const page = async () => {
    const again = () => drawn.forEach(plot => plot());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
    document.getElementById("avlens-theme")?.addEventListener("click", () => {
      document.documentElement.dataset.theme = isDark() ? "light" : "dark";
      again();
    });
    await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
    await draw(document);
  };

  return { draw, page, unpacked };
})();
