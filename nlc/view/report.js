// The report's behaviour. All data is in the page: `data-at` is a place in the YAML (file:line), `data-node` a node of the graph,
// `data-box` and `data-whole` its boxes in the two drawings. What is chosen is kept in the address, so that a view can be shared.

const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const VIEWS = ["code", "passes", "costs", "updates"];
const START = { node: "", at: "", view: "code", pass: "", find: "", cost: "", copies: "", changed: "", panes: "" };

// -- index -------------------------------------------------------------------------------------------------------------

const nodes = all("#nodes li[data-node]");
const nodeOf = new Map(nodes.map((item) => [item.dataset.node, item]));
const panes = all(".pane");
const places = grouped(all("#nodes [data-at], .pane [data-at], .canvas [data-at], .raster [data-at]"), (item) => item.dataset.at);
const boxes = grouped(all(".canvas [data-box]"), (box) => box.dataset.box);
const rows = grouped(all(".raster [data-node], .costs [data-node]"), (row) => row.dataset.node);
const edges = all(".canvas [data-ends]").map((path) => ({ path, ends: path.dataset.ends.split("|") }));
const spanning = nodes.filter((item) => item.dataset.to);

function grouped(items, key) {
  const found = new Map();
  for (const item of items) {
    if (!found.has(key(item))) found.set(key(item), []);
    found.get(key(item)).push(item);
  }
  return found;
}

function boxesOf(item) {
  const ids = new Set([item.dataset.box, item.dataset.whole]);
  return [...ids].flatMap((id) => boxes.get(id) ?? []);
}

/** Everything that belongs to a node: its boxes, its rows, its lines of YAML, and the lines made from its place. */
function ofNode(id) {
  const item = nodeOf.get(id);
  if (!item) return [];
  const found = [item, ...boxesOf(item), ...(rows.get(id) ?? [])];
  const { at, to } = item.dataset;
  if (at) {
    const [file, line] = at.split(":").map(Number);
    for (let n = line; n <= Number(to ?? line); n++) found.push(document.getElementById(`y${file}-${n}`));
    found.push(...(places.get(at) ?? []).filter((line) => line.closest(".pane")));
  }
  return found.filter(Boolean);
}

/** Everything that comes from a line of the YAML; where no node begins there, the smallest one that spans it. */
function ofPlace(at) {
  const found = [...(places.get(at) ?? [])];
  let items = found.filter((item) => item.matches("#nodes li"));
  if (!items.length) items = smallest(at);
  return [...found, ...items, ...items.flatMap((item) => [...boxesOf(item), ...(rows.get(item.dataset.node) ?? [])])];
}

function smallest(at) {
  const [file, line] = at.split(":").map(Number);
  const length = (item) => Number(item.dataset.to) - Number(item.dataset.at.split(":")[1]);
  const around = spanning.filter((item) => {
    const [other, from] = item.dataset.at.split(":").map(Number);
    return other === file && from <= line && line <= Number(item.dataset.to);
  });
  const least = Math.min(...around.map(length));
  return around.filter((item) => length(item) === least);
}

// -- state in the address ----------------------------------------------------------------------------------------------

let state = { ...START };
let origin = null; // the list in which the user chose: it does not scroll under the pointer

function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(Object.entries(START).map(([key, start]) => [key, given.get(key) ?? start]));
}

function written() {
  return new URLSearchParams(Object.entries(state).filter(([key, value]) => value !== START[key])).toString();
}

function set(changes, from = null) {
  origin = from;
  show({ ...state, ...changes });
  if (written() !== location.hash.slice(1)) location.replace(`#${written()}`);
  origin = null;
}

const choose = (chosen, from) => set({ node: "", at: "", ...chosen }, from);

function show(next) {
  const before = state;
  state = next;
  const changed = (...keys) => drawn === 0 || keys.some((key) => before[key] !== state[key]);
  if (changed("view")) showView();
  if (changed("panes")) showPanes();
  if (changed("copies")) showCopies();
  if (changed("find", "copies")) showFound();
  if (changed("cost")) showCosts();
  if (changed("pass", "changed")) showPass();
  if (changed("node", "at", "view", "panes", "copies")) showChosen();
  drawn++;
}
let drawn = 0;

// -- what the state shows ----------------------------------------------------------------------------------------------

function showView() {
  const view = VIEWS.includes(state.view) ? state.view : "code";
  for (const name of VIEWS) {
    const tab = one(`#tab-${name}`);
    tab.setAttribute("aria-selected", String(name === view));
    tab.tabIndex = name === view ? 0 : -1;
    one(`#view-${name}`).hidden = name !== view;
  }
  one("#panes").hidden = view !== "code";
}

const openPanes = () => (state.panes ? state.panes.split(",") : panes.map((pane) => pane.id.slice(5)).filter((id) => id !== "graph"));

function showPanes() {
  const open = openPanes();
  for (const pane of panes) pane.hidden = !open.includes(pane.id.slice(5));
  for (const button of all("#panes button")) button.setAttribute("aria-pressed", String(open.includes(button.value)));
}

function showCopies() {
  const whole = state.copies === "1" && one("#whole svg");
  one("#copies").checked = Boolean(whole);
  one("#nodes").classList.toggle("fold", !whole);
  one("#collapsed").hidden = Boolean(whole);
  one("#whole").hidden = !whole;
  camera.take(one(whole ? "#whole svg" : "#collapsed svg"));
}

function showFound() {
  const wanted = state.find.toLowerCase();
  if (one("#find").value !== state.find) one("#find").value = state.find;
  const kept = new Set();
  let count = 0;
  for (const item of nodes) {
    const fits = item.dataset.node.toLowerCase().includes(wanted);
    item.classList.toggle("out", !fits);
    count += fits;
    if (fits) kept.add(item.dataset.box).add(item.dataset.whole);
  }
  one("#nodes").classList.toggle("finding", wanted !== "");
  one("#found").textContent = wanted ? `${count} of ${nodes.length}` : "";
  for (const box of boxes.values()) for (const each of box) each.classList.toggle("dim", !kept.has(each.dataset.box));
  for (const { path, ends } of edges) path.classList.toggle("dim", wanted !== "" && !ends.every((end) => kept.has(end)));
}

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const isBytes = () => one("#cost").selectedOptions[0]?.textContent.includes("bytes");

function short(count) {
  if (!isBytes()) return compact.format(count);
  const power = Math.min(3, Math.floor(Math.log2(count) / 10));
  return `${Number((count / 1024 ** power).toPrecision(3))} ${["B", "KiB", "MiB", "GiB"][power]}`;
}

function showCosts() {
  one("#cost").value = state.cost;
  for (const badge of all(".canvas .badge")) badge.remove();
  for (const drawing of all(".canvas svg")) {
    const costs = all("[data-costs]", drawing).map((box) => [box, Number(box.dataset.costs.split(" ")[Number(state.cost)])]);
    const most = Math.max(1, ...costs.map(([, cost]) => cost));
    for (const [box, cost] of costs) {
      const frame = one(".box", box);
      const counts = state.cost !== "" && cost > 0;
      frame.classList.toggle("heat", counts);
      if (counts) {
        frame.style.setProperty("--share", `${Math.round(8 + 60 * Math.sqrt(cost / most))}%`);
        box.append(badge(frame, short(cost)));
      }
    }
  }
}

function badge(frame, words) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "text");
  made.setAttribute("class", "badge");
  made.setAttribute("text-anchor", "end");
  made.setAttribute("x", Number(frame.getAttribute("x")) + Number(frame.getAttribute("width")));
  made.setAttribute("y", Number(frame.getAttribute("y")) - 3);
  made.textContent = words;
  return made;
}

function showPass() {
  const items = all("#passes li");
  one("#changed").checked = state.changed === "1";
  one("#passes").classList.toggle("only", state.changed === "1");
  const chosen = items.find((item) => item.dataset.pass === state.pass) ?? items.find((item) => item.matches(".changed")) ?? items[0];
  for (const item of items) {
    mark(item, "on", item === chosen);
    one(`#change-${item.dataset.pass}`).hidden = item !== chosen;
  }
  if (chosen) point(one("#passes"), chosen);
}

let marked = [];
let hovered = [];

function mark(item, name, on) {
  item.classList.toggle(name, on);
  if (name === "on" && item.getAttribute("role") === "option") item.setAttribute("aria-selected", String(on));
}

function showChosen() {
  for (const item of marked) mark(item, "on", false);
  marked = state.node ? ofNode(state.node) : state.at ? ofPlace(state.at) : [];
  for (const item of marked) mark(item, "on", true);
  one("#nodes .own")?.classList.remove("own");
  const own = nodeOf.get(state.node);
  if (own) {
    own.classList.add("own");
    point(one("#nodes"), own);
  }
  const ids = new Set(marked.map((item) => item.dataset.box).filter(Boolean));
  for (const { path, ends } of edges) path.classList.toggle("on", ends.some((end) => ids.has(end)));
  tell(marked.filter((item) => item.matches("#nodes li")));
  for (const list of [one("#nodes"), ...panes.filter((pane) => !pane.hidden).map((pane) => one(".lines", pane))]) {
    const first = marked.find((item) => list.contains(item) && item.checkVisibility());
    if (first && list !== origin) reveal(list, first);
  }
  const box = marked.find((item) => item.matches(".canvas [data-box]") && !item.closest("[hidden]"));
  if (box && origin !== one(".canvas")) camera.reveal(one(".box", box));
}

/** What is known about the chosen node; for a line of the YAML, the names of the nodes made from it. */
function tell(items) {
  const panel = one("#about");
  panel.replaceChildren();
  if (!items.length) return;
  if (!state.node && items.length > 1) panel.append(paragraph(`${items.length} nodes come from this line; the first of them:`));
  const about = one("template", items[0]);
  if (about) panel.append(about.content.cloneNode(true));
  else panel.append(...[items[0].dataset.node, one("span", items[0]).textContent, items[0].dataset.place].filter(Boolean).map(paragraph));
}

function paragraph(words) {
  const made = document.createElement("p");
  made.textContent = words;
  return made;
}

function reveal(list, item) {
  const top = item.offsetTop;
  const room = list.clientHeight;
  if (top < list.scrollTop + 30 || top > list.scrollTop + room - 40) list.scrollTop = top - room / 3;
}

function hover(item) {
  for (const each of hovered) each.classList.remove("hover");
  hovered = !item ? [] : item.dataset.node ? ofNode(item.dataset.node) : ofPlace(item.dataset.at);
  for (const each of hovered) each.classList.add("hover");
}

// -- lists: one tab stop each, arrow keys inside -----------------------------------------------------------------------

function point(list, item) {
  one(".cursor", list)?.classList.remove("cursor");
  item.classList.add("cursor");
  list.setAttribute("aria-activedescendant", item.id);
}

function listbox(list, chosen) {
  list.addEventListener("click", (event) => {
    const item = event.target.closest("[role=option]");
    if (!item || String(getSelection())) return;
    point(list, item);
    chosen(item);
  });
  list.addEventListener("keydown", (event) => {
    const options = all("[role=option]", list);
    const at = options.findIndex((option) => option.classList.contains("cursor"));
    const walk = { ArrowDown: [at + 1, 1], ArrowUp: [at < 0 ? options.length - 1 : at - 1, -1], Home: [0, 1], End: [options.length - 1, -1] }[event.key];
    let item = event.key === "Enter" || event.key === " " ? options[at] : undefined;
    if (walk) for (let i = walk[0]; options[i] && !item; i += walk[1]) if (options[i].checkVisibility()) item = options[i];
    if (!walk && !item) return;
    event.preventDefault();
    if (!item) return;
    point(list, item);
    reveal(list, item);
    chosen(item);
  });
}

listbox(one("#nodes"), (item) => choose({ node: item.dataset.node }, one("#nodes")));
listbox(one("#passes"), (item) => set({ pass: item.dataset.pass }));
for (const list of all(".lines")) listbox(list, (item) => item.dataset.at && choose({ at: item.dataset.at }, list));

one("#changes").addEventListener("click", (event) => {
  const row = event.target.closest("[data-at]");
  if (row && !String(getSelection())) choose({ at: row.dataset.at });
});
for (const rows of all(".costs tbody, .raster")) {
  rows.addEventListener("click", (event) => pick(event.target));
  rows.addEventListener("keydown", (event) => event.key === "Enter" && pick(event.target));
}

function pick(target) {
  const row = target.closest("[data-node]");
  if (row) choose({ node: row.dataset.node });
}

document.addEventListener("pointerover", (event) => {
  if (event.pointerType !== "touch") hover(event.target.closest("[data-at], [data-node]"));
});

// -- the drawing: drag, wheel, keys ------------------------------------------------------------------------------------

const canvas = one(".canvas");
const camera = {
  svg: null, size: [1, 1], x: 0, y: 0, scale: 1, waiting: false, saved: new Map(),
  take(svg) {
    if (svg === this.svg) return;
    if (this.svg) this.saved.set(this.svg, [this.x, this.y, this.scale]);
    this.svg = svg;
    this.size = svg.getAttribute("viewBox").split(" ").slice(2).map(Number);
    if (this.saved.has(svg)) [this.x, this.y, this.scale] = this.saved.get(svg);
    else this.scale = Math.max(0.55, Math.min(canvas.clientWidth / this.size[0], Math.max(0.85, canvas.clientHeight / this.size[1]), 1.2));
    if (!this.saved.has(svg)) [this.x, this.y] = [0, 0];
    this.draw();
  },
  fit() {
    this.scale = Math.min(canvas.clientWidth / this.size[0], canvas.clientHeight / this.size[1]);
    [this.x, this.y] = [(this.size[0] - canvas.clientWidth / this.scale) / 2, 0];
    this.draw();
  },
  move(dx, dy) {
    this.x -= dx / this.scale;
    this.y -= dy / this.scale;
    this.draw();
  },
  zoom(factor, px = canvas.clientWidth / 2, py = canvas.clientHeight / 2) {
    const scale = Math.min(8, Math.max(0.02, this.scale * factor));
    this.x += px / this.scale - px / scale;
    this.y += py / this.scale - py / scale;
    this.scale = scale;
    this.draw();
  },
  reveal(box) {
    const [x, y, w, h] = ["x", "y", "width", "height"].map((name) => Number(box.getAttribute(name)));
    const [width, height] = [canvas.clientWidth / this.scale, canvas.clientHeight / this.scale];
    if (x < this.x || x + w > this.x + width) this.x = x + w / 2 - width / 2;
    if (y < this.y || y + h > this.y + height) this.y = y + h / 2 - height / 2;
    this.draw();
  },
  /** Once a frame, however many events there are. */
  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => this.drawNow());
  },
  drawNow() {
    this.waiting = false;
    const limit = (at, size, room) => Math.min(Math.max(at, 40 - room), size - 40);
    const [width, height] = [canvas.clientWidth / this.scale, canvas.clientHeight / this.scale];
    [this.x, this.y] = [limit(this.x, this.size[0], width), limit(this.y, this.size[1], height)];
    this.svg.style.width = `${this.size[0] * this.scale}px`;
    this.svg.style.height = `${this.size[1] * this.scale}px`;
    this.svg.style.transform = `translate(${-this.x * this.scale}px, ${-this.y * this.scale}px)`;
  },
};

let drag = null;
canvas.addEventListener("pointerdown", (event) => {
  if (event.button === 0) drag = { x: event.clientX, y: event.clientY, far: 0, target: event.target };
});
canvas.addEventListener("pointermove", (event) => {
  if (!drag) return;
  const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
  drag.far += Math.abs(dx) + Math.abs(dy);
  if (drag.far < 5) return;
  if (!canvas.hasPointerCapture(event.pointerId)) canvas.setPointerCapture(event.pointerId);
  canvas.classList.add("drag");
  [drag.x, drag.y] = [event.clientX, event.clientY];
  camera.move(dx, dy);
});
canvas.addEventListener("pointerup", () => {
  const box = drag && drag.far < 5 ? drag.target.closest("[data-box]") : null;
  if (box) choose({ node: box.dataset.node }, canvas);
  canvas.classList.remove("drag");
  drag = null;
});
canvas.addEventListener("pointercancel", () => (drag = null));
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const { left, top } = canvas.getBoundingClientRect();
  const dy = event.deltaMode === 1 ? 30 * event.deltaY : event.deltaY;
  if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(dy)) camera.move(-(event.deltaX || dy), 0);
  else camera.zoom(Math.exp(-dy / 400), event.clientX - left, event.clientY - top);
}, { passive: false });
const KEYS = {
  ArrowLeft: () => camera.move(60, 0), ArrowRight: () => camera.move(-60, 0), ArrowUp: () => camera.move(0, 60), ArrowDown: () => camera.move(0, -60),
  "+": () => camera.zoom(1.25), "=": () => camera.zoom(1.25), "-": () => camera.zoom(0.8), 0: () => camera.fit(),
};
canvas.addEventListener("keydown", (event) => {
  if (!KEYS[event.key] || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  KEYS[event.key]();
});
const ZOOM = { in: KEYS["+"], out: KEYS["-"], fit: KEYS[0] };
for (const button of all("[data-zoom]")) button.addEventListener("click", () => ZOOM[button.dataset.zoom]());
new ResizeObserver(() => camera.svg && camera.drawNow()).observe(canvas);

// -- controls ----------------------------------------------------------------------------------------------------------

const find = one("#find");
find.addEventListener("input", () => set({ find: find.value }));
find.addEventListener("keydown", (event) => {
  const first = nodes.find((item) => item.checkVisibility());
  if (event.key === "Enter" && first) choose({ node: first.dataset.node });
  if (event.key === "ArrowDown") one("#nodes").focus();
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=search], select");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    find.focus();
    find.select();
  } else if (event.key === "Escape") {
    if (state.find) set({ find: "" });
    else choose({});
    if (typing) one("#nodes").focus();
  }
});
one("#cost").addEventListener("change", (event) => set({ cost: event.target.value }));
one("#copies").addEventListener("change", (event) => set({ copies: event.target.checked ? "1" : "" }));
one("#changed").addEventListener("change", (event) => set({ changed: event.target.checked ? "1" : "" }));

for (const pane of panes) {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", value: pane.id.slice(5), textContent: one("h3", pane).textContent });
  button.addEventListener("click", () => {
    const open = new Set(openPanes());
    if (!open.delete(button.value)) open.add(button.value);
    set({ panes: panes.map((each) => each.id.slice(5)).filter((id) => open.has(id)).join(",") });
  });
  one("#panes").append(button);
}

for (const name of VIEWS) one(`#tab-${name}`).addEventListener("click", () => set({ view: name }));
one("[role=tablist]").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const view = VIEWS[(VIEWS.indexOf(state.view) + step + VIEWS.length) % VIEWS.length];
  set({ view });
  one(`#tab-${view}`).focus();
});

const split = one("#split");
const resize = (height) => document.documentElement.style.setProperty("--height", `${Math.max(80, height)}px`);
split.addEventListener("pointerdown", (event) => split.setPointerCapture(event.pointerId));
split.addEventListener("pointermove", (event) => {
  if (split.hasPointerCapture(event.pointerId)) resize(event.clientY - one("#picture").getBoundingClientRect().top);
});
split.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 24, ArrowUp: -24 }[event.key];
  if (step) resize(one("#picture").offsetHeight + step);
});

addEventListener("hashchange", () => location.hash.slice(1) !== written() && show(read()));
show(read());
