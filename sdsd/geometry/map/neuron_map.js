// Draws one neuron map with plotly.js. The element `name` takes the plot; `name`-data holds, as JSON, traces (one a
// cluster: name, colour, points, sizes, texts) and links between nearest pairs. Colours follow the page's own.
function drawNeuronMap(name) {
  "use strict";
  const element = document.getElementById(name);
  const data = JSON.parse(document.getElementById(name + "-data").textContent);
  const colour = (variable) => getComputedStyle(document.documentElement).getPropertyValue(variable).trim();
  const axis = (points, k) => points.map((point) => (point === null ? null : point[k]));

  function traces() {
    const drawn = data.traces.map((trace) => ({
      type: "scatter3d", mode: "markers", name: trace.name,
      x: axis(trace.points, 0), y: axis(trace.points, 1), z: axis(trace.points, 2),
      text: trace.texts, hovertemplate: "%{text}<extra></extra>",
      marker: { size: trace.sizes, color: trace.colour, opacity: 0.92, line: { width: 1, color: colour("--paper") } },
    }));
    const ends = data.links.flatMap((link) => [link[0], link[1], null]);
    if (ends.length) {
      drawn.push({
        type: "scatter3d", mode: "lines", name: "nearest pairs", hoverinfo: "skip",
        x: axis(ends, 0), y: axis(ends, 1), z: axis(ends, 2), line: { color: colour("--ink"), width: 3 },
      });
    }
    return drawn;
  }

  function layout() {
    const bare = {
      title: { text: "" }, showticklabels: false, showspikes: false, zeroline: false, showbackground: false,
      gridcolor: colour("--grid"), linecolor: colour("--grid"),
    };
    return {
      autosize: true, margin: { l: 0, r: 0, t: 0, b: 0 }, paper_bgcolor: "rgba(0,0,0,0)", uirevision: "kept",
      font: { color: colour("--muted"), family: getComputedStyle(document.body).fontFamily },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--muted"), activecolor: colour("--ink") },
      legend: { itemsizing: "constant", x: 0, y: 1, bgcolor: "rgba(0,0,0,0)" },
      hoverlabel: { align: "left", bgcolor: colour("--paper"), bordercolor: colour("--ink"),
        font: { color: colour("--ink") } },
      scene: { xaxis: bare, yaxis: bare, zaxis: bare, aspectmode: "data", dragmode: "orbit",
        camera: { eye: { x: 0.9, y: -1.5, z: 0.9 } } },
    };
  }

  // plotly.js offers to upload charts unless told not to.
  const config = { responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
    modeBarButtonsToRemove: ["sendChartToCloud", "sendDataToCloud", "tableRotation", "resetCameraLastSave3d"] };
  Plotly.newPlot(element, traces(), layout(), config);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    Plotly.react(element, traces(), layout(), config);
  });
}
