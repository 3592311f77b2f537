// Draws the page of `sdsd watch`: asks for /data once a second and redraws what changed. No library, no other address.
"use strict";

const COLOURS = ["#ee8a2c", "#2fa572", "#9467d4", "#df5452", "#2ba3b8", "#b8923a", "#d765a8", "#7f8c9b", "#6d8f3c"];
const DRAWN_AT_FIRST = 6;
const EVERY = 1000; // milliseconds between two questions
const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";

const byId = (id) => document.getElementById(id);
let view = null; // the last answer, with curves
let chosen = null; // the step that is shown; null: the newest
const drawn = new Map(); // parameter -> whether its curve is drawn, once somebody or DRAWN_AT_FIRST decided

// Numbers, as the reports of sdsd write them.
function plain(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  let text;
  if (size >= 1e6) text = (size / 1e6).toFixed(1) + " million";
  else if (size >= 1000) text = Number(size.toPrecision(2)).toLocaleString("en-US");
  else if (size >= 10 || size === 0) text = size.toFixed(0);
  else if (size >= 1e-5) text = String(Number(Number(size.toPrecision(2)).toFixed(6)));
  else text = size.toExponential(1).replace("e-", "×10^−");
  return (value < 0 ? "−" : "") + text;
}

function powerOfTen(value) {
  if (value >= 0.001 && value < 1e5) return value >= 1 ? value.toLocaleString("en-US") : String(Number(value.toFixed(3)));
  const power = Math.floor(Math.log10(value) + 1e-9);
  const factor = Math.round(value / 10 ** power);
  const digits = String(Math.abs(power)).replace(/\d/g, (digit) => SUPERSCRIPTS[digit]);
  return (factor > 1 ? factor + " · " : "") + "10" + (power < 0 ? "⁻" : "") + digits;
}

const batchGamma = () => `Γ of a batch of ${view.batch.toLocaleString("en-US")}`;
const scaleOf = (gamma) => (gamma === null ? null : gamma > 0 ? 1 / gamma : Infinity);

function ticks(low, high) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  let powers = [];
  for (let power = first; power <= last; power++) powers.push(10 ** power);
  const inside = powers.filter((value) => value >= low && value <= high);
  const apart = Math.ceil(inside.length / 7);
  if (inside.length >= 2) return inside.filter((_, place) => place % apart === 0);
  return powers.flatMap((value) => [value, 2 * value, 5 * value]).filter((value) => value >= low && value <= high);
}

function stepTicks(low, high, most) {
  const rough = Math.max(1, (high - low) / most), power = 10 ** Math.floor(Math.log10(rough));
  const apart = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= rough);
  const found = [];
  for (let value = Math.ceil(low / apart) * apart; value <= high; value += apart) found.push(value);
  return found;
}

function element(name, attributes, parent, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

// One chart: curves [{step, value, low, high, colour, total}], a horizontal line, the chosen step. Values that are
// infinite lie on the upper edge, those below the axis on the lower one; a gap means that nothing was measured.
function chart(svg, curves, line, lineClass, label) {
  const width = Math.max(svg.clientWidth, 200), height = Math.max(svg.clientHeight, 120);
  const left = 58, right = 10, top = 12, bottom = 40;
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const finite = curves.flatMap((curve) => curve.value).concat(line).filter((v) => v !== null && v > 0 && v < Infinity);
  const low = Math.min(...finite) / 1.6, high = Math.max(...finite) * 1.6;
  const steps = curves[0].step, first = steps[0], last = Math.max(steps[steps.length - 1], first + 1);
  const x = (step) => left + ((step - first) / (last - first)) * (width - left - right);
  const within = (value) => Math.min(Math.max(value, low), high);
  const y = (value) => top + ((Math.log(high) - Math.log(within(value))) / Math.log(high / low)) * (height - top - bottom);
  for (const tick of ticks(low, high)) {
    element("line", { class: "axis", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }, svg);
    element("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, svg, powerOfTen(tick));
  }
  for (const tick of stepTicks(first, last, width / 90)) {
    element("text", { x: x(tick), y: height - bottom + 16, "text-anchor": "middle" }, svg, tick.toLocaleString("en-US"));
  }
  element("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, svg, "step");
  element("text", { x: -(top + height - bottom) / 2, y: 12, "text-anchor": "middle", transform: "rotate(-90)" }, svg, label);
  for (const curve of curves.filter((each) => each.low)) {
    let run = [];
    const close = () => {
      if (run.length > 1) {
        const points = [...run.map((i) => [x(curve.step[i]), y(curve.high[i])]),
          ...run.reverse().map((i) => [x(curve.step[i]), y(curve.low[i])])];
        element("path", { class: "band", d: "M" + points.map((p) => p.join(" ")).join("L") + "Z" }, svg);
      }
      run = [];
    };
    curve.step.forEach((_, i) => (curve.low[i] === null || curve.high[i] === null ? close() : run.push(i)));
    close();
  }
  element("line", { class: lineClass, x1: left, x2: width - right, y1: y(line), y2: y(line) }, svg);
  for (const curve of [...curves].reverse()) {
    let path = "", pen = false;
    curve.value.forEach((value, i) => {
      if (value !== null) path += (pen ? "L" : "M") + x(curve.step[i]).toFixed(1) + " " + y(value).toFixed(1);
      pen = value !== null;
    });
    const attributes = { class: curve.total ? "curve total" : "curve", d: path };
    if (!curve.total) attributes.stroke = curve.colour;
    element("path", attributes, svg);
  }
  const here = x(steps[place(curves[0])]);
  element("line", { class: "here", x1: here, x2: here, y1: top, y2: height - bottom }, svg);
  svg.stepAt = (across) => first + ((across - left) / (width - left - right)) * (last - first);
}

// Where in a curve the chosen step is: the last point at or before it.
function place(curve) {
  if (chosen === null) return curve.step.length - 1;
  let found = 0;
  curve.step.forEach((step, i) => { if (step <= chosen) found = i; });
  return found;
}

const colourOf = (curve) => COLOURS[(view.curves.indexOf(curve) - 1) % COLOURS.length];

function isDrawn(curve) {
  if (!drawn.has(curve.name)) {
    const weights = view.curves.filter((each) => each.name !== "total" && !each.name.endsWith("bias"));
    drawn.set(curve.name, weights.indexOf(curve) >= 0 && weights.indexOf(curve) < DRAWN_AT_FIRST);
  }
  return drawn.get(curve.name);
}

function drawCharts() {
  const [total, ...parameters] = view.curves;
  chart(byId("noise-chart"), [{ step: total.step, value: total.gamma.map(scaleOf), total: true,
    low: total.high.map((g) => (g === null ? null : scaleOf(g))),
    high: total.low.map((g) => (g === null ? null : scaleOf(g))) }], view.batch, "batch", "samples");
  // What holds no signal lies on the lower edge: zero and below have no place on a logarithmic axis.
  const ofBatch = (curve) => curve.gamma.map((g) => (g === null ? null : Math.max(g * view.batch, 1e-300)));
  const shown = parameters.filter(isDrawn).map((curve) => ({ step: curve.step, value: ofBatch(curve),
    colour: colourOf(curve) }));
  const values = ofBatch(total).map((v) => v);
  chart(byId("gamma-chart"), [{ step: total.step, value: values, total: true }, ...shown].map(floored), 1, "one",
    batchGamma());
  const at = place(total), gamma = total.gamma[at];
  byId("noise-chart").setAttribute("aria-label", `Noise scale over steps: ${plain(scaleOf(gamma))} at step ${total.step[at]}`);
  byId("gamma-chart").setAttribute("aria-label",
    `${batchGamma()} over steps: ${plain(gamma === null ? null : gamma * view.batch)} at step ${total.step[at]}`);
}

// No decade of nothing: values under a thousandth are drawn on the lower edge.
function floored(curve) {
  return { ...curve, value: curve.value.map((v) => (v === null ? null : Math.max(v, 1e-3))) };
}

const CELLS = ["Γ of a batch", "noise scale", "interval", "phase, newest"];
let listed = ""; // the names of the table's rows, which are made anew only when these change

function makeRow(curve) {
  const row = document.createElement("tr");
  row.setAttribute("role", "row");
  const head = document.createElement("th");
  head.scope = "row";
  head.setAttribute("role", "rowheader");
  const swatch = document.createElement("span");
  swatch.className = "swatch";
  swatch.style.background = curve.name === "total" ? "var(--accent)" : colourOf(curve);
  head.append(swatch, curve.name);
  row.append(head);
  const cells = [...CELLS, "draw"].map((label) => {
    const cell = document.createElement("td");
    cell.setAttribute("role", "cell");
    cell.dataset.label = label;
    row.append(cell);
    return cell;
  });
  const box = document.createElement("input");
  box.type = "checkbox";
  box.setAttribute("aria-label", `draw ${curve.name}`);
  box.checked = curve.name === "total" || isDrawn(curve);
  box.disabled = curve.name === "total";
  box.addEventListener("change", () => { drawn.set(curve.name, box.checked); drawCharts(); });
  cells[CELLS.length].append(box);
  return row;
}

function drawTable() {
  const body = byId("parameters"), names = JSON.stringify(view.curves.map((curve) => curve.name));
  if (names !== listed) body.replaceChildren(...view.curves.map(makeRow));
  listed = names;
  view.curves.forEach((curve, row) => {
    const at = place(curve), gamma = curve.gamma[at], low = curve.low[at], high = curve.high[at];
    const texts = [plain(gamma === null ? null : gamma * view.batch), plain(scaleOf(gamma)),
      low === null || high === null ? "–" : `${plain(scaleOf(high))} – ${plain(scaleOf(low))}`, curve.phase || "–"];
    const cells = body.rows[row].querySelectorAll("td");
    texts.forEach((text, place) => { cells[place].textContent = text; });
    cells[0].dataset.label = batchGamma();
  });
  const all = view.curves.length - 1 + view.left_out;
  byId("left-out").textContent = view.left_out ? `${view.curves.length - 1} of ${all} parameters: those with the most noise.`
    : all ? "" : "The file holds the total alone: GammaHistory(path, parameters=True) keeps parameters.";
}

function level() {
  return view.confidence === null ? "" : `${Number((100 * view.confidence).toPrecision(6))}% `;
}

function drawRun() {
  const total = view.curves[0], at = place(total), gamma = total.gamma[at], range = byId("step");
  const low = total.low[at], high = total.high[at];
  range.max = total.step.length - 1;
  range.value = at;
  range.setAttribute("aria-valuetext", `step ${total.step[at]}`);
  byId("step-value").textContent = total.step[at].toLocaleString("en-US");
  byId("newest").disabled = chosen === null;
  byId("scale").textContent = plain(scaleOf(gamma));
  byId("scale-label").textContent = low === null || high === null ? "samples: the noise scale"
    : `samples: the noise scale (${level()}interval ${plain(scaleOf(high))} – ${plain(scaleOf(low))})`;
  byId("gamma").textContent = plain(gamma === null ? null : gamma * view.batch);
  byId("gamma-label").textContent = `${batchGamma()}${total.phase && chosen === null ? ": " + total.phase : ""}`;
  byId("batch").textContent = view.batch.toLocaleString("en-US");
  byId("recommended").textContent = view.recommended === null ? "–" : plain(view.recommended);
  byId("advice").textContent = view.advice || "No running averages yet.";
  document.querySelectorAll(".batch-gamma").forEach((each) => { each.textContent = batchGamma(); });
  drawCharts();
  drawTable();
}

function time(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

const WORDS = { writing: "writing", quiet: "not writing", waiting: "waiting", broken: "cannot be read", lost: "ended" };

function drawState(answer, state) {
  const badge = byId("state");
  if (badge.textContent !== WORDS[state]) badge.textContent = WORDS[state];
  badge.className = `badge ${state}`;
  const parts = [];
  if (answer && answer.step !== null) parts.push(`last step ${answer.step.toLocaleString("en-US")}`);
  if (answer && answer.age !== null && answer.rows) parts.push(`file written ${time(answer.age)} ago`);
  if (answer && answer.behind) parts.push(`reading, ${Math.ceil(answer.behind / 1e6)} MB to go`);
  byId("about").textContent = parts.join(" · ");
  const note = byId("note");
  note.textContent = state === "lost" ? "sdsd watch has ended, or does not answer. Start it again; what stands here is the last it said."
    : state === "broken" ? answer.problem
    : state === "waiting" ? (answer.there ? "The file has no row yet." : "The file is not there yet. It is drawn as soon as it is.")
    : "";
  note.hidden = !note.textContent;
}

async function ask() {
  let wait = EVERY;
  try {
    const known = view === null ? "" : `?version=${view.version}`;
    const answer = await (await fetch(`/data${known}`)).json();
    drawState(answer, answer.state);
    const curves = answer.curves;
    if (curves) {
      view = answer;
      byId("run").hidden = !curves.length || curves[0].name !== "total";
      if (!byId("run").hidden) drawRun();
    }
    if (answer.behind) wait = 0;
  } catch (error) {
    drawState(view, "lost");
  }
  setTimeout(ask, wait);
}

function choose(step) {
  const total = view.curves[0], newest = total.step[total.step.length - 1];
  chosen = step >= newest ? null : Math.max(step, total.step[0]);
  drawRun();
}

byId("step").addEventListener("input", (event) => choose(view.curves[0].step[Number(event.target.value)]));
byId("newest").addEventListener("click", () => { choose(Infinity); byId("step").focus(); });
for (const id of ["noise-chart", "gamma-chart"]) {
  const svg = byId(id);
  const point = (event) => {
    if (view && svg.stepAt) choose(Math.round(svg.stepAt(event.clientX - svg.getBoundingClientRect().left)));
  };
  let before = null; // what was chosen when the mouse came
  svg.addEventListener("pointerenter", () => { before = chosen; });
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerleave", (event) => {
    if (view && event.pointerType === "mouse") choose(before === null ? Infinity : before);
  });
}
new ResizeObserver(() => { if (view && !byId("run").hidden) drawCharts(); }).observe(document.querySelector("main"));
ask();
