// What pointing at a neuron map shows, and turning it, for keyboards and fingers: a list of neurons, and buttons.
// The element `name` holds the map of neuron_map.js, `name`-controls a select, an output and buttons.
function mapControls(name) {
  "use strict";
  const element = document.getElementById(name), controls = document.getElementById(name + "-controls");
  const list = controls.querySelector("select"), output = controls.querySelector("output");
  const data = JSON.parse(document.getElementById(name + "-data").textContent);
  const neurons = data.traces.flatMap((trace) => trace.texts.map((text, place) => ({
    number: Number(/neuron (\d+)/.exec(text)[1]), point: trace.points[place],
    words: text.replace("<br>", ". Nearest, with cosines: ").replace("nearest: ", "").replace(/<[^>]*>/g, ""),
  }))).sort((one, two) => one.number - two.number);
  for (const { number } of neurons) list.add(new Option(String(number), String(number)));

  let marked = false;
  function show() {
    const neuron = neurons.find((each) => String(each.number) === list.value);
    if (!neuron) return;
    output.textContent = neuron.words;
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
    const [x, y, z] = neuron.point.map((value) => [value]);
    const ring = { type: "scatter3d", mode: "markers", name: "chosen", x, y, z, hoverinfo: "skip", showlegend: false,
      marker: { symbol: "circle-open", size: 20, color: ink, line: { width: 3 } } };
    const done = marked ? Plotly.deleteTraces(element, -1) : Promise.resolve();
    marked = true;
    done.then(() => Plotly.addTraces(element, ring));
  }
  list.addEventListener("change", show);
  element.on("plotly_click", (event) => {
    const found = /neuron (\d+)/.exec(event.points[0].text || "");
    if (found) { list.value = found[1]; show(); }
  });

  function look(turn, lift, nearer) {
    const camera = element.layout.scene.camera, { x, y, z } = camera.eye;
    const far = Math.hypot(x, y, z), around = Math.atan2(y, x) + turn;
    const up = Math.min(Math.max(Math.asin(z / far) + lift, -1.5), 1.5), length = far * nearer;
    const eye = { x: length * Math.cos(up) * Math.cos(around), y: length * Math.cos(up) * Math.sin(around),
      z: length * Math.sin(up) };
    Plotly.relayout(element, { "scene.camera": { ...camera, eye } });
  }
  const ways = { left: [-0.3, 0, 1], right: [0.3, 0, 1], up: [0, 0.3, 1], down: [0, -0.3, 1], nearer: [0, 0, 0.8],
    farther: [0, 0, 1.25] };
  for (const button of controls.querySelectorAll("button")) {
    button.addEventListener("click", () => look(...ways[button.dataset.way]));
  }

  // On a narrow screen the legend goes below the map, so that it hides no neuron, and the eye goes back: the width of
  // what it sees is that of the height, as far as the element is narrower than high.
  const near = { ...element.layout.scene.camera.eye };
  function fit() {
    const narrow = element.clientWidth < 560, back = Math.max(1, element.clientHeight / element.clientWidth);
    const legend = narrow ? { orientation: "h", x: 0, y: 0, yanchor: "top" } : { orientation: "v", x: 0, y: 1 };
    const eye = { x: near.x * back, y: near.y * back, z: near.z * back };
    Plotly.relayout(element, { legend: { ...element.layout.legend, ...legend },
      "scene.camera": { ...element.layout.scene.camera, eye } });
  }
  fit();
  window.matchMedia("(max-width: 620px)").addEventListener("change", fit);
}
