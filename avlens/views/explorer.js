// A grid of layers and groups of tokens to click on, with the answers' probabilities beside it.
// `render` draws it in a notebook, where clicks go to the kernel; `alone` in a page, where only what was run is known.

const SVG = "http://www.w3.org/2000/svg";
const SITES_TOLD = { "resid_pre": "residual stream", "ln1.normalized": "normalised input", "k, v": "keys and values" };

function render({ model, el }) {
  const shown = mount(el, model.get("spec"), true, message => model.send(message));
  const update = () => shown(model.get("view"));
  const stills = document.querySelectorAll(`[data-avlens-still="${model.get("spec").still}"]`);
  stills.forEach(still => { still.hidden = true; });  // the picture for pages without a kernel
  model.on("change:view", update);
  update();
  return () => {
    model.off("change:view", update);
    stills.forEach(still => { still.hidden = false; });
  };
}

function alone(el, spec, given) {
  let steps = [{ edits: given.edits, probabilities: given.probabilities, told: given.history[given.at] }], at = 0;
  const view = { ...given, status: "Without a kernel, cells that were run can be clicked on.", failed: false };
  const shown = mount(el, spec, false, message => {
    const known = view.cells[message.do]?.[`${message.layer},${message.group}`];
    if (known) {
      const into = message.do === "knockout" || view.choices.direction === "noise" ? spec.p.clean : spec.p.corrupted;
      const told = `${message.do === "knockout" ? "knock out" : "patch"} L${message.layer} ${spec.groups[message.group].label}`;
      const edit = { kind: message.do, layer: message.layer, group: message.group, window: view.choices.window };
      steps = [...steps.slice(0, ++at), { edits: [edit], probabilities: known.map((x, i) => x === null ? null : into[i] + x), told }];
      view.status = told;
    } else if (message.do === "go_to") at = message.step;
    else if (message.do === "undo") at = Math.max(0, at - 1);
    else if (message.do === "redo") at = Math.min(steps.length - 1, at + 1);
    else if (message.do === "choose" && "follow" in message.choices) view.choices = { ...view.choices, ...message.choices };
    else view.status = "That was not run, and a page has no kernel to run it.";
    draw();
  });
  const draw = () => shown({ ...view, ...steps[at], at, history: steps.map(step => step.told), code: at ? null : given.code });
  draw();
}

function h(tag, attributes = {}, ...children) {
  const made = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function mount(el, spec, live, ask) {
  const root = h("div", { class: "avx", "data-lm-suppress-shortcuts": "true" });
  el.replaceChildren(root);
  let view = null, focus = null;
  const parts = { ...controls(), ...grid(), ...side() };
  const tip = h("div", { class: "avx-tip", hidden: true });
  root.append(
    h("div", { class: "avx-head" }, h("b", {}, "Patch explorer"), h("span", {}, spec.note)),
    parts.controls,
    h("div", { class: "avx-body" }, h("div", { class: "avx-left" }, parts.scroll, parts.legend, parts.status, parts.progress), parts.side),
    parts.code,
    tip,
  );
  return told => { view = told; draw(); };

  function controls() {
    const choose = name => event => ask({ do: "choose", choices: { [name]: event.target.value } });
    const numbers = name => event => ask({ do: "choose", choices: { [name]: Number(event.target.value) } });
    const option = (value, text) => h("option", { value }, text);
    const windows = [1, 2, 3, 5, 9, 15].filter(n => n < spec.layers).concat(spec.layers);
    const direction = h("select", { onchange: choose("direction"), "aria-label": "direction" },
      option("denoise", "clean into corrupted"), option("noise", "corrupted into clean"));
    const site = h("select", { onchange: choose("site"), "aria-label": "site" },
      ...spec.sites.map(name => option(name, SITES_TOLD[name] ?? name)));
    const window = h("select", { onchange: numbers("window"), "aria-label": "window" },
      ...windows.map(n => option(n, n === spec.layers && n > 1 ? "all from there on" : `${n} layer${n > 1 ? "s" : ""}`)));
    const add = h("input", { type: "checkbox", onchange: event => ask({ do: "choose", choices: { add: event.target.checked } }) });
    const button = (text, title, act) => h("button", { type: "button", title, onclick: act }, text);
    const undo = button("Undo", "Before the last edit", () => ask({ do: "undo" }));
    const redo = button("Redo", "What was undone", () => ask({ do: "redo" }));
    const sweep = button("Sweep column", "",
      () => ask({ do: "sweep", group: column(), layer: null }));
    const all = button("Sweep all", "Patch every cell that was not run yet", () => ask({ do: "sweep", group: null, layer: null }));
    const stop = button("Stop", "End the sweep after what is under way", () => ask({ do: "stop" }));
    const copy = button("Copy code", "Python that does the same", () => copied(copy));
    const told = (text, field) => h("label", {}, h("span", {}, text), field);
    const needKernel = [told("patch ", direction), told("at ", site), told("in ", window),
      h("label", { title: "The next edit joins those that are there" }, add, h("span", {}, "add edits up"))];
    const bar = h("div", { class: "avx-controls" }, ...(live ? needKernel : []), undo, redo, ...(live ? [sweep, all, stop, copy] : []));
    return { controls: bar, direction, site, window, add, undo, redo, sweep, all, stop };
  }

  function grid() {
    const n = spec.groups.length, w = clamp(Math.floor(430 / n), 17, 27), t = clamp(Math.floor(440 / spec.layers), 13, 28);
    const longest = Math.max(...spec.groups.map(group => group.label.length));
    const top = Math.min(170, 22 + 5.6 * longest), left = 40, over = Math.min(90, 8 + 3.2 * longest);
    const width = left + n * w + over, height = top + spec.layers * t + 4;
    const svg = h("svg:svg", { width, height, viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "grid",
      "aria-label": "layers by groups of tokens", class: "avx-grid" });
    spec.groups.forEach((group, i) => {
      const x = left + i * w;
      svg.append(
        h("svg:g", { class: "avx-column", "data-group": i, transform: `translate(${x + w * 0.62},${top - 9}) rotate(-60)` },
          h("svg:text", {}, group.label), h("svg:title", {}, `${group.label}: ${group.n} tokens. Click sweeps the column.`)),
        h("svg:rect", { x, y: top - 5, width: w - 1, height: 3, fill: group.colour }));
    });
    const every = Math.ceil(12 / t);
    for (let layer = 0; layer < spec.layers; layer++) {
      if (layer % every === 0) svg.append(h("svg:g", { class: "avx-row", "data-layer": layer },
        h("svg:text", { x: left - 7, y: top + layer * t + t / 2 + 4, "text-anchor": "end" }, `L${layer}`),
        h("svg:title", {}, `Click sweeps layer ${layer}.`)));
      for (let group = 0; group < n; group++) {
        const x = left + group * w, y = top + layer * t, a = w - 1, b = t - 1;
        svg.append(h("svg:g", { class: "avx-cell", "data-layer": layer, "data-group": group, role: "gridcell",
          "aria-label": `layer ${layer}, ${spec.groups[group].label}` },
          h("svg:rect", { x, y, width: a, height: b, class: "avx-patched" }),
          h("svg:path", { d: `M${x + a},${y}V${y + b}H${x}Z`, class: "avx-knocked" }),
          h("svg:rect", { x: x + 0.75, y: y + 0.75, width: a - 1.5, height: b - 1.5, class: "avx-ring" })));
      }
    }
    svg.addEventListener("click", clicked);
    svg.addEventListener("keydown", pressed);
    svg.addEventListener("pointermove", hovered);
    svg.addEventListener("pointerleave", () => { tip.hidden = true; });
    return { svg, scroll: h("div", { class: "avx-scroll" }, svg), legend: h("div", { class: "avx-legend", style: `max-width:${Math.max(320, width - 40)}px` }) };
  }

  function side() {
    const answers = h("div", { class: "avx-answers" });
    const status = h("div", { class: "avx-status", role: "status", "aria-live": "polite" });
    const progress = h("progress", { hidden: true });
    const history = h("ol", { class: "avx-history", start: 0 });
    const text = h("pre", {});
    const code = h("details", { class: "avx-code" }, h("summary", {}, "The same in Python"), text);
    return { answers, status, progress, history, code, text,
      side: h("div", { class: "avx-side" }, answers, h("div", { class: "avx-past" }, h("div", { class: "avx-small" }, "History"), history)) };
  }

  function clicked(event) {
    const [cell, head, row] = [".avx-cell", ".avx-column", ".avx-row"].map(kind => event.target.closest(kind));
    const kind = event.shiftKey ? "knockout" : "patch";
    if (cell) { focus = at(cell); ask({ do: kind, layer: focus[0], group: focus[1] }); }
    else if (head) { focus = [focus?.[0] ?? 0, Number(head.dataset.group)]; ask({ do: "sweep", group: focus[1], layer: null, kind }); }
    else if (row) { focus = [Number(row.dataset.layer), focus?.[1] ?? 0]; ask({ do: "sweep", group: null, layer: focus[0], kind }); }
  }

  function pressed(event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }, move = moves[event.key];
    if (move) focus = focus ? [clamp(focus[0] + move[0], 0, spec.layers - 1), clamp(focus[1] + move[1], 0, spec.groups.length - 1)] : [0, 0];
    else if (event.key === "Enter" && focus) ask({ do: event.shiftKey ? "knockout" : "patch", layer: focus[0], group: focus[1] });
    else if (event.key === "s" && focus) ask({ do: "sweep", group: focus[1], layer: null });
    else if (event.key === "z" && (event.ctrlKey || event.metaKey)) ask({ do: event.shiftKey ? "redo" : "undo" });
    else return;
    event.preventDefault();
    rings();
  }

  function hovered(event) {
    const cell = event.target.closest(".avx-cell, .avx-column");
    tip.hidden = !cell;
    if (!cell) return;
    const [layer, group] = at(cell), column = spec.groups[group], follow = view.choices.follow;
    const lines = [`${Number.isNaN(layer) ? "" : `layer ${layer} · `}${column.label} · ${column.n} token${column.n > 1 ? "s" : ""}`];
    for (const [kind, told] of [["patch", "patched"], ["knockout", "knocked out"]]) {
      const known = view.cells[kind][`${layer},${group}`];
      if (known) lines.push(`${told}: P(${spec.answers[follow]}) ${signed(known[follow])}`);
    }
    tip.replaceChildren(...lines.map(line => h("div", {}, line)),
      ...(column.picture ? [h("img", { src: column.picture, alt: "frame" })] : []));
    const box = root.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    tip.style.left = `${Math.min(x + 14, box.width - tip.offsetWidth - 4)}px`;
    tip.style.top = `${y + 16 + tip.offsetHeight > box.height ? y - tip.offsetHeight - 8 : y + 16}px`;
  }

  function draw() {
    const { choices, cells } = view, busy = view.progress !== null;
    for (const name of ["direction", "site", "window"]) parts[name].value = String(choices[name]);
    parts.add.checked = choices.add;
    parts.undo.disabled = view.at === 0;
    parts.redo.disabled = view.at === view.history.length - 1;
    parts.stop.hidden = !busy;
    parts.sweep.hidden = parts.all.hidden = busy;
    parts.sweep.title = `Patch ${spec.groups[column()].label} in every layer; a click on another column's label sweeps that one`;
    parts.progress.hidden = !busy;
    if (busy) [parts.progress.value, parts.progress.max] = view.progress;
    parts.status.textContent = view.status;
    parts.status.classList.toggle("avx-failed", view.failed);
    parts.code.hidden = view.code === null;
    parts.text.textContent = view.code ?? "";
    const sizes = ["patch", "knockout"].flatMap(kind => Object.values(cells[kind]).map(p => Math.abs(p[choices.follow] ?? 0)));
    const limit = Math.max(...sizes, Math.abs(spec.p.clean[choices.follow] - spec.p.corrupted[choices.follow]), 1e-9);
    colour(limit);
    legend(limit);
    answers();
    parts.history.replaceChildren(...view.history.map((told, i) => h("li", {}, h("button", { type: "button",
      class: i === view.at ? "avx-now" : i > view.at ? "avx-undone" : "", onclick: () => ask({ do: "go_to", step: i }) }, told))));
    parts.history.querySelector(".avx-now")?.scrollIntoView({ block: "nearest" });
    rings();
  }

  function colour(limit) {
    const { cells, choices } = view;
    for (const cell of parts.svg.querySelectorAll(".avx-cell")) {
      const place = at(cell).join(",");
      for (const [kind, name] of [["patch", ".avx-patched"], ["knockout", ".avx-knocked"]]) {
        const known = cells[kind][place]?.[choices.follow], shape = cell.querySelector(name);
        shape.classList.toggle("avx-known", known !== undefined && known !== null);
        shape.style.fill = known === undefined || known === null ? "" : shade(known / limit);
      }
    }
  }

  function legend(limit) {
    parts.legend.replaceChildren(
      h("span", {}, `change of P(${spec.answers[view.choices.follow]})`), h("span", {}, `−${limit.toPrecision(2)}`),
      h("span", { class: "avx-scale" }), h("span", {}, `+${limit.toPrecision(2)}`),
      h("span", { class: "avx-small" }, `click: patch · shift-click: knock out (◢)${live ? " · on a label: sweep" : ""}`));
  }

  function answers() {
    const edited = view.edits.length > 0, kinds = new Set(view.edits.map(edit => edit.kind));
    const name = kinds.size > 1 ? "edited" : kinds.has("knockout") ? "knocked out" : "patched";
    const runs = [["clean", spec.p.clean], ["corrupted", spec.p.corrupted], ["edited", edited ? view.probabilities : null]];
    const told = { clean: "clean", corrupted: "corrupted", edited: name };
    parts.answers.replaceChildren(
      h("div", { class: "avx-keys" }, ...runs.map(([run]) => h("span", { class: `avx-${run}` }, h("i", {}), told[run]))),
      ...spec.answers.map((answer, i) => h("div", { class: "avx-answer" },
        h("button", { type: "button", title: "Colour the grid by this answer", class: i === view.choices.follow ? "avx-now" : "",
          onclick: () => ask({ do: "choose", choices: { follow: i } }) }, answer),
        h("div", {}, ...runs.map(([run, p]) => h("div", { class: `avx-bar avx-${run}`, "data-run": run, "data-answer": i },
          h("i", { style: `width:calc((100% - 44px) * ${p?.[i] ?? 0})` }), h("span", {}, p && p[i] !== null ? p[i].toFixed(3) : "–")))))));
  }

  function rings() {
    for (const cell of parts.svg.querySelectorAll(".avx-cell")) {
      const [layer, group] = at(cell);
      const on = view.edits.some(edit => edit.group === group && edit.layer <= layer && layer < edit.layer + edit.window);
      cell.classList.toggle("avx-on", on);
      cell.classList.toggle("avx-focus", focus !== null && focus[0] === layer && focus[1] === group);
    }
  }

  function column() {
    return focus?.[1] ?? view.edits.at(-1)?.group ?? 0;
  }

  async function copied(button) {
    let done = true;
    try {
      await navigator.clipboard.writeText(view.code ?? "");
    } catch {  // no clipboard where the page is not secure: select what is shown
      const field = h("textarea", { class: "avx-hidden" });
      field.value = view.code ?? "";
      root.append(field);
      field.select();
      done = document.execCommand("copy");
      field.remove();
    }
    button.textContent = done ? "Copied" : "Not copied";
    setTimeout(() => { button.textContent = "Copy code"; }, 1500);
  }
}

function at(cell) {
  return [Number(cell.dataset.layer ?? NaN), Number(cell.dataset.group)];
}

function clamp(x, low, high) {
  return Math.max(low, Math.min(high, x));
}

function signed(x) {
  return x === null ? "not known" : `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(3)}`;
}

function shade(share) {
  const there = 100 * Math.min(1, Math.abs(share));
  return `color-mix(in srgb, var(--avx-${share >= 0 ? "gain" : "loss"}) ${there.toFixed(1)}%, transparent)`;
}

export default { render, alone };
