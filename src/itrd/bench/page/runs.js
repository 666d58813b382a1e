// The list of runs, page by page, and the details of one.
const ROWS = 50;
const searchable = [];

const COLUMNS = [
  { key: "compare", title: "Curve", plain: true, left: true },
  { key: "name", title: "Run", left: true },
  { key: "method", title: "Method", left: true },
  { key: "seed", title: "Seed" },
  { key: "last", title: "Last epoch, %" },
  { key: "best", title: "Best epoch, %" },
  { key: "seconds", title: "Training time" },
  { key: "rate", title: "Images/s" },
  { key: "hardware", title: "Hardware", left: true },
];

const hardwareOf = (run) => DATA.hardware[RUNS.hardware[run]];
const methodOf = (run) => DATA.tracks[RUNS.track[run]].methods[RUNS.method[run]].title;

function valueOf(run, key) {
  if (key === "method") return methodOf(run);
  if (key === "hardware") return hardwareOf(run);
  return RUNS[key][run];
}

function matching() {
  const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [];
  for (let run = 0; run < RUN_COUNT; run++) {
    if (RUNS.track[run] !== state.track) continue;
    if (state.only && !state.only.runs.has(run)) continue;
    if (words.length) {
      searchable[run] = searchable[run] || [RUNS.name[run], methodOf(run), "seed" + RUNS.seed[run], hardwareOf(run)].join(" ").toLowerCase();
      if (!words.every((word) => searchable[run].includes(word))) continue;
    }
    found.push(run);
  }
  const [key, direction] = state.sort;
  return found.sort((a, b) => order(valueOf(a, key), valueOf(b, key), direction) || a - b);
}

function renderRuns() {
  const found = matching();
  const pages = Math.max(1, Math.ceil(found.length / ROWS));
  state.page = Math.min(state.page, pages - 1);
  const shown = found.slice(state.page * ROWS, (state.page + 1) * ROWS);
  byId("runs").replaceChildren(
    sortHeader(COLUMNS, state.sort, (sort) => { state.sort = sort; state.page = 0; renderRuns(); }),
    el("tbody", null, shown.map(row)));
  const count = byId("count");
  count.replaceChildren(`${found.length.toLocaleString("en")} run${found.length === 1 ? "" : "s"}`);
  if (state.only) {
    count.append(` of ${state.only.title} `, el("button", { type: "button", id: "show-all", on: { click: () => { state.only = null; renderRuns(); } } }, "Show all"));
  }
  byId("page").textContent = `page ${state.page + 1} of ${pages}`;
  byId("previous").disabled = state.page === 0;
  byId("next").disabled = state.page >= pages - 1;
  byId("pages").hidden = pages === 1;
}

function row(run) {
  return el("tr", { "data-run": RUNS.name[run] },
    el("td", null, el("input", {
      type: "checkbox", "aria-label": "Show the curve of " + RUNS.name[run], checked: state.chosen.includes(run),
      on: { change: () => toggleCurve(run) },
    })),
    el("td", { class: "left" }, el("button", { type: "button", class: "link", on: { click: () => openRun(run) } }, RUNS.name[run])),
    el("td", { class: "left" }, methodOf(run)),
    el("td", null, RUNS.seed[run]),
    el("td", null, el("strong", null, fixed(RUNS.last[run]))),
    el("td", null, `${fixed(RUNS.best[run])} (${RUNS.bestEpoch[run]})`),
    el("td", null, duration(RUNS.seconds[run])),
    el("td", null, Math.round(RUNS.rate[run]).toLocaleString("en")),
    el("td", { class: "left" }, hardwareOf(run)));
}

/** Everything the record says, in a dialog; the address names the run, so that it can be linked to. */
function openRun(run) {
  const dialog = byId("details");
  const t = DATA.tracks[RUNS.track[run]];
  const record = {};
  for (const [key, index] of Object.entries(DATA.details[RUNS.details[run]])) record[key] = DATA.pool[index];
  const facts = [
    ["last epoch", `${fixed(RUNS.last[run])}% of the test set`],
    ["best epoch", `${fixed(RUNS.best[run])}%, epoch ${RUNS.bestEpoch[run]}, chosen on the test set`],
    ["epochs", RUNS.epochs[run]],
    ["seed", RUNS.seed[run]],
    ["loss function", record.objective],
    ["training time", `${duration(RUNS.seconds[run])}${RUNS.wall[run] == null ? "" : `, with evaluations ${duration(RUNS.wall[run])}`}`],
    ["throughput", `${Math.round(RUNS.rate[run]).toLocaleString("en")} images/s`],
    ["hardware", hardwareOf(run)],
    ["finished", RUNS.finished[run]],
    ["record", `${t.name}/${RUNS.file[run]}`],
  ];
  dialog.replaceChildren(
    el("button", { type: "button", class: "close", on: { click: () => dialog.close() } }, "Close"),
    el("h2", { id: "details-title" }, RUNS.name[run]),
    el("dl", null, facts.filter(([, value]) => value != null && value !== "").map(([name, value]) => [el("dt", null, name), el("dd", null, value)])),
    el("h3", null, "To reproduce it"),
    el("pre", null, RUNS.command[run] == null ? "" : DATA.commands[RUNS.command[run]].replace("SEED", RUNS.seed[run])),
    ...Object.entries(record).filter(([, value]) => value !== null && typeof value === "object").flatMap(([key, value]) => [
      el("h3", null, key), el("pre", null, plain(value))]));
  history.replaceState(null, "", "#" + encodeURIComponent(`${t.name}/${RUNS.name[run]}`));
  dialog.showModal();
}

/** A part of a record, one line an entry. */
function plain(value) {
  if (Array.isArray(value)) return JSON.stringify(value);
  return Object.entries(value).map(([key, item]) => `${key}: ${typeof item === "string" ? item : JSON.stringify(item)}`).join("\n");
}
