// Charts. Every series has a colour, a dash and a shape of its own, so that none needs to be told by colour.
const MOST_CURVES = 12;
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#8F6BD1", "#7F7F7F"];
const SHAPES = ["circle", "triangle", "rect", "rectRot", "star", "cross", "crossRot", "rectRounded"];
const DASHES = [[], [6, 3], [2, 2], [8, 3, 2, 3]];
const charts = {};

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function draw(id, config) {
  if (charts[id]) charts[id].destroy();
  Chart.defaults.color = style("--faint");
  Chart.defaults.borderColor = style("--line");
  Chart.defaults.animation = false;
  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  charts[id] = new Chart(byId(id), config);
}

function axis(title, more) {
  return { title: { display: true, text: title }, ...more };
}

function renderCurves() {
  const kind = byId("curve-kind").value || "curve";
  const narrow = window.innerWidth < 640;
  const datasets = state.chosen.map((run, i) => ({
    label: RUNS.name[run],
    data: curve(kind, run),
    borderColor: COLOURS[i % COLOURS.length],
    backgroundColor: COLOURS[i % COLOURS.length],
    borderDash: DASHES[Math.floor(i / COLOURS.length) % DASHES.length],
    pointStyle: SHAPES[i % SHAPES.length],
    pointRadius: (context) => (context.dataIndex % Math.ceil(context.dataset.data.length / 12) === 0 ? 3.5 : 0),
    borderWidth: 2,
  }));
  draw("curves", {
    type: "line",
    data: { datasets },
    options: {
      maintainAspectRatio: false,
      parsing: false,
      interaction: { mode: "nearest", axis: "x", intersect: false },
      scales: { x: axis("epoch", { type: "linear" }), y: axis(kind === "curve" ? "test accuracy, %" : "training accuracy, %") },
      plugins: {
        legend: { position: "bottom", display: !narrow, labels: { usePointStyle: true } },
        tooltip: { callbacks: { title: (items) => "epoch " + items[0].parsed.x } },
      },
    },
  });
  byId("chosen").replaceChildren(...state.chosen.map((run, i) => el("li", null,
    el("button", { type: "button", title: "Remove this curve", on: { click: () => toggleCurve(run) } },
      swatch(i), " " + RUNS.name[run] + " ✕"))));
  byId("curves-hint").textContent = (state.chosen.length
    ? `${state.chosen.length} of at most ${MOST_CURVES} runs.` : "Choose runs in the list below.") + DATA.thinned;
}

function swatch(i) {
  const mark = el("span", { "aria-hidden": "true" }, "■");
  mark.style.color = COLOURS[i % COLOURS.length];
  return mark;
}

function toggleCurve(run) {
  const at = state.chosen.indexOf(run);
  if (at >= 0) state.chosen.splice(at, 1);
  else {
    if (state.chosen.length >= MOST_CURVES) state.chosen.shift();
    state.chosen.push(run);
  }
  renderCurves();
  renderRuns();
}

/** Accuracy against training time, one point a method; times of different machines are never mixed. */
function renderCost() {
  const cells = rankedCells().filter(({ method }) => method.name !== "teacher");
  const machines = [...new Set(cells.flatMap(({ cell }) => cell.runs.map((run) => RUNS.hardware[run])))].sort((a, b) => a - b);
  const select = byId("hardware");
  const wanted = machines.includes(Number(select.value)) ? Number(select.value) : machines[0];
  select.replaceChildren(...machines.map((machine) => el("option", { value: machine }, DATA.hardware[machine])));
  if (wanted != null) select.value = String(wanted);
  const points = cells.map(({ method, cell }) => {
    const runs = cell.runs.filter((run) => RUNS.hardware[run] === wanted);
    const mean = (column) => runs.reduce((sum, run) => sum + RUNS[column][run], 0) / runs.length;
    return runs.length ? { label: method.title, n: runs.length, x: mean("seconds") / 60, y: mean("last") } : null;
  }).filter(Boolean);
  const labels = {
    id: "labels",
    afterDatasetsDraw(chart) {
      const { ctx } = chart;
      ctx.save();
      ctx.fillStyle = style("--text");
      ctx.font = "11px " + Chart.defaults.font.family;
      const taken = [];
      chart.data.datasets.forEach((dataset, i) => {
        const { x, y } = chart.getDatasetMeta(i).data[0];
        const width = ctx.measureText(dataset.label).width;
        const left = x + 8 + width > chart.chartArea.right ? x - 8 - width : x + 8;
        // Labels that would lie on one another are left out; the legend and the pointer still tell.
        const box = [left, y - 7, left + width, y + 7];
        if (taken.some((b) => box[0] < b[2] && b[0] < box[2] && box[1] < b[3] && b[1] < box[3])) return;
        taken.push(box);
        ctx.fillText(dataset.label, left, y + 4);
      });
      ctx.restore();
    },
  };
  draw("cost", {
    type: "scatter",
    data: {
      datasets: points.map((point, i) => ({
        label: point.label,
        data: [point],
        backgroundColor: COLOURS[i % COLOURS.length],
        borderColor: COLOURS[i % COLOURS.length],
        pointStyle: SHAPES[(i + Math.floor(i / COLOURS.length)) % SHAPES.length],
        pointRadius: 6,
        pointHoverRadius: 8,
        borderWidth: 2,
      })),
    },
    options: {
      maintainAspectRatio: false,
      scales: { x: axis("training time of a run, minutes"), y: axis("test accuracy after the last epoch, %") },
      plugins: {
        legend: { position: "bottom", display: window.innerWidth >= 640, labels: { usePointStyle: true } },
        tooltip: {
          callbacks: {
            label: ({ raw }) => `${raw.label}: ${fixed(raw.y)}%, ${duration(raw.x * 60)}, ${raw.n} run${raw.n > 1 ? "s" : ""}`,
          },
        },
      },
    },
    plugins: [labels],
  });
}
