// What everything else uses: the data, and ways to make elements. Text from records is only ever set as text.
const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = DATA.runs;
const RUN_COUNT = RUNS.name.length;
const state = { track: 0, pair: 0, baseline: 0, chosen: [], filter: "", only: null, sort: ["name", 1], page: 0 };

const byId = (id) => document.getElementById(id);

/** Make an element: attributes, then children, which are elements or text. */
function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "on") for (const [name, f] of Object.entries(value)) node.addEventListener(name, f);
    else if (key === "class") node.className = value;
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, String(value));
  }
  for (const child of children.flat(Infinity)) if (child != null && child !== false) node.append(child);
  return node;
}

// Half goes up, as in the Markdown tables, whichever side of it a sum came out.
const fixed = (value, digits = 2) => (value == null ? "" : (value + (value < 0 ? -1e-9 : 1e-9)).toFixed(digits));

/** A difference with its sign, which says without colour what the colour says. */
function signed(value) {
  if (value == null) return "";
  const text = fixed(Math.abs(value));
  if (text === "0.00") return "±0.00";
  return (value > 0 ? "+" : "−") + text;
}

const arrow = (value) => (value == null || Math.abs(value) < 0.005 ? "" : value > 0 ? "▲ " : "▼ ");

function probability(p) {
  if (p == null) return "";
  return p < 0.001 ? "p < 0.001" : "p = " + p.toFixed(3);
}

function duration(seconds) {
  if (seconds == null) return "";
  if (seconds < 90) return seconds.toFixed(0) + " s";
  if (seconds < 5400) return (seconds / 60).toFixed(0) + " min";
  return (seconds / 3600).toFixed(1) + " h";
}

const track = () => DATA.tracks[state.track];
const cellOf = (pair, method) => track().cells[pair * track().methods.length + method] || null;
const pairName = (pair) => pair[0] + " → " + pair[1];

/** A comparison from the data; `pairs` is there where runs without a partner were left out. */
function comparison(found) {
  if (!found) return null;
  const [difference, low, high, p, pairs, paired] = found;
  return { difference, low, high, p, pairs, paired };
}

function comparisonText(found) {
  if (!found) return "";
  let text = signed(found.difference);
  if (found.low != null) text += ` (${signed(found.low)} to ${signed(found.high)})`;
  if (found.p != null) text += ", " + probability(found.p);
  if (!found.paired) text += ", unpaired";
  if (found.pairs) text += `, ${found.pairs} pair${found.pairs > 1 ? "s" : ""}`;
  return text;
}

/** The points of a run's curve: differences of hundredths of a percent, evenly spaced over its epochs. */
function curve(kind, run) {
  const packed = (RUNS[kind] || [])[run];
  if (!packed) return [];
  const epochs = RUNS.epochs[run];
  let sum = 0;
  return packed.map((difference, i) => {
    sum += difference;
    const epoch = packed.length === 1 ? epochs : 1 + Math.round((i * (epochs - 1)) / (packed.length - 1));
    return { x: epoch, y: sum / 100 };
  });
}

// --- the one tooltip --------------------------------------------------------------------------------------

let tipOf = null;

/** Show lines of text while an element is hovered over or has the focus. */
function tooltip(node, lines) {
  const show = () => {
    tipOf = node;
    byId("tip").replaceChildren(...lines().filter(Boolean).map((line) => el("div", null, line)));
    byId("tip").hidden = false;
    placeTip();
  };
  const hide = () => { if (tipOf === node) hideTip(); };
  node.addEventListener("mouseenter", show);
  node.addEventListener("focus", show);
  node.addEventListener("mouseleave", hide);
  node.addEventListener("blur", hide);
}

function hideTip() {
  tipOf = null;
  byId("tip").hidden = true;
}

/** Put the tooltip below its element, or above it where there is no room. */
function placeTip() {
  if (!tipOf) return;
  const tip = byId("tip");
  const box = tipOf.getBoundingClientRect();
  const left = Math.min(box.left, window.innerWidth - tip.offsetWidth - 8);
  const below = box.bottom + 6 + tip.offsetHeight < window.innerHeight;
  tip.style.left = Math.max(8, left) + "px";
  tip.style.top = (below ? box.bottom + 6 : Math.max(8, box.top - tip.offsetHeight - 6)) + "px";
}

document.addEventListener("scroll", placeTip, true);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

// --- sortable tables --------------------------------------------------------------------------------------

/** Header cells that sort: columns are {key, title, left}; `sort` is [key, direction]. */
function sortHeader(columns, sort, onSort) {
  return el("thead", null, el("tr", null, columns.map((column) => {
    const active = sort[0] === column.key;
    const head = el("th", {
      scope: "col",
      class: column.left ? "left" : "",
      "aria-sort": active ? (sort[1] > 0 ? "ascending" : "descending") : null,
    });
    if (column.plain) head.append(column.title);
    else {
      const next = active ? -sort[1] : column.left ? 1 : -1;
      head.append(el("button", { type: "button", "data-key": column.key, on: { click: () => onSort([column.key, next]) } }, column.title));
    }
    return head;
  })));
}

/** Compare two values of any kind; what is missing comes last in either direction. */
function order(a, b, direction) {
  if (a == null || b == null) return (a == null) - (b == null);
  if (typeof a === "string") return direction * a.localeCompare(b, undefined, { numeric: true });
  return direction * (a - b);
}
