// What a point's colour says: a cluster, whether it is kept, or a measure on a ramp.
const RAMP = ["#6a3fd0", "#b13fa8", "#e0567a", "#f08a4b", "#f5b83d"];
const STEPS = 32;
const CLUSTER_COLOURS = 12;
const LEGEND_CLUSTERS = 24;

function clusterColours() {
  const probe = document.createElement("span");
  document.body.append(probe);
  const found = [];
  for (let number = 0; number < CLUSTER_COLOURS; number++) {
    probe.className = `c${number}`;
    found.push(getComputedStyle(probe).getPropertyValue("--c").trim());
  }
  probe.remove();
  return found;
}

function rampColours() {
  const mix = (from, to, share) =>
    [1, 3, 5].map((at) => {
      const [a, b] = [from, to].map((colour) => Number.parseInt(colour.slice(at, at + 2), 16));
      return Math.round(a + (b - a) * share);
    });
  return Array.from({ length: STEPS }, (_, step) => {
    const place = (step / (STEPS - 1)) * (RAMP.length - 1);
    const from = Math.min(Math.floor(place), RAMP.length - 2);
    return `rgb(${mix(RAMP[from], RAMP[from + 1], place - from).join(",")})`;
  });
}

// {colours, of}: the colours, and the number of each point's among them.
function colouring(points, mode) {
  if (mode === "cluster") {
    return { colours: clusterColours(), of: points.cluster.map((one) => one % CLUSTER_COLOURS) };
  }
  if (mode === "kept") return { colours: ["#8a94a6", "#2f7de0"], of: points.kept };
  const [low, high] = [points.quantile(mode, 0.02), points.quantile(mode, 0.98)];
  const span = high - low || 1;
  const of = new Int32Array(points.count);
  points[mode].forEach((value, point) => {
    const share = Math.min(Math.max((value - low) / span, 0), 1);
    of[point] = Math.round(share * (STEPS - 1));
  });
  return { colours: rampColours(), of, low, high };
}

function figure(value) {
  return Number(value.toPrecision(3)).toLocaleString("en");
}

// Fills the legend; a cluster's entry is a button that filters to it.
function showLegend(legend, points, mode, { low, high }, choose) {
  legend.replaceChildren();
  if (mode === "cluster") {
    const largest = [...points.sizes].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
    for (const [cluster] of largest.slice(0, LEGEND_CLUSTERS)) {
      const item = element("button", "item", dot(`c${cluster % CLUSTER_COLOURS}`), String(cluster));
      item.type = "button";
      item.setAttribute("aria-label", `Filter to cluster ${cluster}`);
      item.addEventListener("click", () => choose(cluster));
      legend.append(item);
    }
    const more = largest.length - LEGEND_CLUSTERS;
    const said = [
      more > 0 ? `and ${more} smaller clusters` : "",
      largest.length > CLUSTER_COLOURS ? `colours repeat every ${CLUSTER_COLOURS} clusters` : "",
    ].filter(Boolean);
    if (said.length) legend.append(element("span", "soft", said.join("; ")));
    return;
  }
  if (mode === "kept") {
    const kept = points.kept.reduce((sum, one) => sum + one, 0);
    for (const [name, count, colour] of [["kept", kept, 1], ["not kept", points.count - kept, 0]]) {
      const swatch = dot(colour ? "" : "hollow");
      swatch.style.background = colour ? "#2f7de0" : "#8a94a6";
      legend.append(element("span", "item", swatch, `${name} (${count.toLocaleString("en")})`));
    }
    return;
  }
  const outside = "lowest and highest 2 % share the end colours";
  legend.append(figure(low), rampBar(), figure(high), element("span", "soft", `${mode}; ${outside}`));
}

function rampBar() {
  const bar = element("span", "ramp");
  for (const colour of rampColours()) {
    const part = document.createElement("span");
    part.style.background = colour;
    bar.append(part);
  }
  return bar;
}

function dot(name) {
  return element("span", `dot ${name}`);
}

// An element with a class and children; strings become text and nothing else.
function element(tag, name, ...children) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...children);
  return made;
}
