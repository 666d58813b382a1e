// Put everything together.

function renderTracks() {
  byId("tracks").replaceChildren(...DATA.tracks.map((t, i) => el("button", {
    type: "button", role: "tab", "aria-selected": String(i === state.track), on: { click: () => openTrack(i) },
  }, `${t.title} (${t.runCount.toLocaleString("en")})`)));
}

function openTrack(i) {
  const t = DATA.tracks[i];
  Object.assign(state, { track: i, only: null, page: 0, filter: "", chosen: [] });
  byId("filter").value = "";
  state.baseline = Math.max(0, t.methods.findIndex((method) => method.name === "none"));
  const measured = t.pairs.findIndex((_, p) => t.methods.some((m, j) => t.cells[p * t.methods.length + j]?.n && m.name !== "teacher"));
  state.pair = Math.max(0, measured);
  // Something to look at: the first run of the student alone and of the best methods.
  const best = rankedCells().filter(({ method }) => method.name !== "teacher").sort((a, b) => b.cell.mean - a.cell.mean);
  const alone = best.filter(({ method }) => method.name === "none");
  state.chosen = [...new Set([...best.slice(0, 3), ...alone])].map(({ cell }) => cell.runs[0]);
  const machines = t.hardware.map(([name, count]) => `${name} (${count.toLocaleString("en")} run${count > 1 ? "s" : ""})`).join(", ");
  byId("about").replaceChildren(
    el("p", null, t.note),
    el("p", { class: "note" }, t.runCount === 0 ? "No runs yet." : "Hardware: " + machines + "."));
  for (const id of ["curves-section", "runs-section"]) byId(id).hidden = t.runCount === 0;
  renderTracks();
  renderTables();
  renderPair();
  renderCurves();
  renderRuns();
}

byId("summary").textContent =
  `${RUN_COUNT.toLocaleString("en")} runs, each with its record. Numbers are accuracies on the test set after the last epoch, ` +
  "in percent, means over seeds; the best epoch is chosen on the test set and stands beside for comparison only.";
byId("footer").replaceChildren(el("p", null, `itrd ${DATA.version}, ${DATA.generated}. ` + DATA.footer));
fill(byId("curve-kind"), ["test accuracy"].concat(RUNS.train ? ["training accuracy"] : []), 0);
[...byId("curve-kind").options].forEach((option, i) => { option.value = ["curve", "train"][i]; });
byId("curve-kind").value = "curve";
byId("curve-kind").addEventListener("change", renderCurves);
byId("clear-curves").addEventListener("click", () => { state.chosen = []; renderCurves(); renderRuns(); });
byId("pair").addEventListener("change", (event) => { state.pair = Number(event.target.value); renderPair(); });
byId("baseline").addEventListener("change", (event) => { state.baseline = Number(event.target.value); renderPair(); });
byId("hardware").addEventListener("change", renderCost);
byId("filter").addEventListener("input", (event) => { state.filter = event.target.value; state.page = 0; renderRuns(); });
byId("previous").addEventListener("click", () => { state.page -= 1; renderRuns(); });
byId("next").addEventListener("click", () => { state.page += 1; renderRuns(); });
byId("details").addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));
byId("details").addEventListener("click", (event) => { if (event.target === byId("details")) byId("details").close(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { renderCurves(); renderCost(); });

// A published track if it has runs, otherwise the one with the most.
const interest = (t) => t.runCount * (t.published ? 1e9 : 1);
openTrack(DATA.tracks.reduce((best, t, i) => (interest(t) > interest(DATA.tracks[best]) ? i : best), 0));
let linked = "";
try { linked = decodeURIComponent(location.hash.slice(1)); } catch { /* not one of our links */ }
if (linked) {
  const run = RUNS.name.findIndex((name, i) => linked === `${DATA.tracks[RUNS.track[i]].name}/${name}`);
  if (run >= 0) { openTrack(RUNS.track[run]); openRun(run); }
}
