// The tables: ours beside published, coloured by difference; and the ranking of one pair.

function renderTables() {
  const t = track();
  const sections = t.groups.map((group) => [el("h2", null, group.title), legend(t), grid(t, group.pairs)]);
  byId("tables").replaceChildren(...sections.flat());
}

function legend(t) {
  const what = t.published ? "published" : "the student alone";
  return el("div", { class: "legend" },
    el("span", null, el("i", { class: "up" }), `▲ above ${what}`),
    el("span", null, el("i", { class: "down" }), `▼ below ${what}`),
    t.published && el("span", null, "Small: published. † epoch not stated by the source, ‡ best epoch"),
    el("span", null, "Empty: not run. Click for the runs."));
}

function grid(t, pairs) {
  const head = el("tr", null, el("th", { scope: "col" }, "Method"), pairs.map((p) => {
    const [teacher, student] = t.pairs[p];
    return el("th", { scope: "col" }, teacher, el("br"), "→ " + student);
  }));
  const rows = t.methods.map((method, m) => {
    const cells = pairs.map((p) => cellOf(p, m));
    if (t.published && cells.every((cell) => !cell)) return null;
    const reference = method.name === "none" || method.name === "teacher";
    return el("tr", { class: reference ? "reference" : "" },
      el("th", { scope: "row" }, method.title),
      pairs.map((p, i) => gridCell(t, p, m, cells[i])));
  });
  const few = pairs.length < 4 ? " few" : "";
  return el("div", { class: "scroll" + few }, el("table", { class: "grid" }, el("thead", null, head), el("tbody", null, rows)));
}

function gridCell(t, p, m, cell) {
  const place = { "data-pair": p, "data-method": t.methods[m].name };
  if (!cell) return el("td", place);
  const published = cell.pub == null ? "" : fixed(cell.pub) + ({ best: "‡", "not stated": "†" }[cell.pubEpoch] || "");
  if (!cell.n) return el("td", place, el("span", { class: "only", title: "published, " + cell.pubEpoch + " epoch; not run" }, published));
  const difference = t.published ? cell.gap : cell.gain && cell.gain[0];
  const button = el("button", { type: "button", on: { click: () => showCell(p, m) } },
    el("span", { class: "ours" }, fixed(cell.mean)),
    cell.n > 1 && el("small", null, " ±" + fixed((cell.high - cell.low) / 2)),
    el("br"),
    el("small", null, [arrow(difference) + signed(difference), published].filter(Boolean).join("  · ")));
  const lines = () => describeCell(t, p, m, cell);
  button.setAttribute("aria-label", lines().filter(Boolean).join("; "));
  tooltip(button, lines);
  const td = el("td", { ...place, class: difference == null || Math.abs(difference) < 0.005 ? "" : difference > 0 ? "up" : "down" }, button);
  td.style.setProperty("--strength", Math.min(0.55, 0.08 + Math.abs(difference || 0) * 0.25).toFixed(3));
  return td;
}

function describeCell(t, p, m, cell) {
  const interval = cell.n > 1 ? ` (95% interval ${fixed(cell.low)} to ${fixed(cell.high)}, std ${fixed(cell.std)})` : "";
  const gain = comparison(cell.gain);
  const epoch = { best: "best epoch", last: "last epoch", "not stated": "epoch not stated" }[cell.pubEpoch];
  return [
    `${t.methods[m].title}, ${pairName(t.pairs[p])}`,
    `last epoch ${fixed(cell.mean)}%${interval}, n = ${cell.n}`,
    `best epoch, chosen on the test set: ${fixed(cell.best)}%`,
    cell.pub == null ? null : `published ${fixed(cell.pub)}% (${epoch}), ours ${signed(cell.gap)}`,
    gain ? `against the student alone ${comparisonText(gain)}` : null,
    cell.note || null,
  ];
}

/** Open a cell: its runs below, their curves chosen. */
function showCell(p, m) {
  const cell = cellOf(p, m);
  state.pair = p;
  state.only = { runs: new Set(cell.runs), title: `${track().methods[m].title}, ${pairName(track().pairs[p])}` };
  state.filter = "";
  byId("filter").value = "";
  state.page = 0;
  state.chosen = cell.runs.slice(0, MOST_CURVES);
  hideTip();
  renderPair();
  renderCurves();
  renderRuns();
  byId("runs-section").scrollIntoView({ behavior: "auto" });
}

// --- one pair ---------------------------------------------------------------------------------------------

let rankingSort = ["mean", -1];

function rankedCells() {
  const t = track();
  return t.methods
    .map((method, m) => ({ method, m, cell: cellOf(state.pair, m) }))
    .filter(({ cell }) => cell && cell.n);
}

function renderPair() {
  const t = track();
  byId("pair-section").hidden = t.runCount === 0;
  fill(byId("pair"), t.pairs.map(pairName), state.pair);
  fill(byId("baseline"), t.methods.map((method) => method.title), state.baseline);
  const rows = rankedCells().map(({ method, m, cell }) => ({
    method, m, cell, title: method.title, mean: cell.mean, n: cell.n, best: cell.best, seconds: cell.seconds,
    gain: method.name === "teacher" ? null : comparison(versus(state.pair, m, state.baseline)),
  }));
  rows.forEach((row) => { row.difference = row.gain && row.gain.difference; });
  rows.sort((a, b) => order(a[rankingSort[0]], b[rankingSort[0]], rankingSort[1]));
  const low = Math.min(...rows.map((row) => row.cell.low ?? row.mean));
  const high = Math.max(...rows.map((row) => row.cell.high ?? row.mean));
  const columns = [
    { key: "title", title: "Method", left: true },
    { key: "n", title: "n" },
    { key: "mean", title: "Last epoch, %" },
    { key: "bar", title: "95% interval", plain: true },
    { key: "best", title: "Best epoch, %" },
    { key: "difference", title: "Against " + t.methods[state.baseline].title },
    { key: "seconds", title: "Training time" },
  ];
  const body = rows.map((row) => el("tr", { "data-method": row.method.name },
    el("td", { class: "left" }, el("button", { class: "link", type: "button", on: { click: () => showCell(state.pair, row.m) } }, row.title)),
    el("td", null, row.n),
    el("td", null, el("strong", null, fixed(row.mean))),
    el("td", null, bar(row.cell, low, high)),
    el("td", null, fixed(row.best)),
    el("td", null, row.m === state.baseline ? "" : comparisonText(row.gain)),
    el("td", null, duration(row.seconds))));
  byId("ranking").replaceChildren(
    sortHeader(columns, rankingSort, (sort) => { rankingSort = sort; renderPair(); }), el("tbody", null, body));
  const tests = rows.filter((row) => row.gain && row.gain.p != null).length;
  byId("ranking-hint").textContent = rows.length === 0 ? "No runs of this pair yet." :
    "Differences are taken seed by seed (paired t-test) where every run of the smaller group has a partner of the same seed, else " +
    "between the groups (Welch). Where runs without a partner are left out, the number of pairs is given. " +
    (tests > 1 ? `${tests} tests, p not corrected for their number.` : "");
  renderCost();
}

/** The comparison of two methods: stored once, in the order of the methods. */
function versus(p, a, b) {
  const size = track().methods.length;
  const found = track().versus[p];
  if (a === b || !found) return null;
  if (a < b) return found[a * size + b] || null;
  const other = found[b * size + a];
  if (!other) return null;
  const [difference, low, high, ...rest] = other;
  return [-difference, high == null ? null : -high, low == null ? null : -low, ...rest];
}

function bar(cell, low, high) {
  const place = (value) => (high > low ? (100 * (value - low)) / (high - low) : 50);
  const node = el("div", { class: "bar" });
  if (cell.low != null) {
    const line = el("i");
    line.style.left = place(cell.low) + "%";
    line.style.width = place(cell.high) - place(cell.low) + "%";
    node.append(line);
  }
  const dot = el("b");
  dot.style.left = place(cell.mean) + "%";
  node.append(dot);
  return node;
}

function fill(select, titles, chosen) {
  select.replaceChildren(...titles.map((title, i) => el("option", { value: i, selected: i === chosen }, title)));
  select.value = String(chosen);
}
