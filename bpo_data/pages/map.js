// The map with its tools, the pair that is read, and the cluster table that filters along.
const ARROWS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
const DRAGGED = 4; // pixels after which a press is a drag and no click

class PairMap {
  constructor(points) {
    this.points = points;
    this.tools = Object.fromEntries(
      ["colour", "search", "kept", "counted", "legend", "pair", "canvas", "cut"].map((name) => [
        name, document.getElementById(name),
      ]),
    );
    document.getElementById("map").hidden = false;
    this.cluster = null;
    this.view = new Canvas(this.tools.canvas, points);
    this.listen();
    this.listenToPointer();
    this.listenToTable();
    this.tools.cut.textContent = points.texts.some((text) => text.endsWith("\u2026"))
      ? `Texts are cut to ${points.limit.toLocaleString("en")} characters here, and the search goes through these.`
      : "";
    this.recolour();
    this.refilter();
    this.read(-1);
  }

  listen() {
    const { colour, search, kept, canvas } = this.tools;
    colour.addEventListener("change", () => this.recolour());
    search.addEventListener("input", () => this.refilter());
    kept.addEventListener("change", () => this.refilter());
    const buttons = {
      "zoom-in": () => this.view.zoomBy(1.6), "zoom-out": () => this.view.zoomBy(1 / 1.6),
      whole: () => this.view.whole(), clear: () => this.clear(),
    };
    for (const [id, act] of Object.entries(buttons)) {
      document.getElementById(id).addEventListener("click", act);
    }
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { view } = this;
    if (event.key in ARROWS) this.step(ARROWS[event.key]);
    else if (event.key === "Enter") { if (view.hovered >= 0) this.pin(view.hovered); }
    else if (event.key === "Escape") this.clear();
    else if (event.key === "+" || event.key === "=") view.zoomBy(1.6);
    else if (event.key === "-") view.zoomBy(1 / 1.6);
    else if (event.key === "0") view.whole();
    else return;
    event.preventDefault();
  }

  // From the pair that is read to the next one; from none, to the one nearest to the middle.
  step(direction) {
    const { view } = this;
    const from = view.hovered >= 0 ? view.hovered : view.pinned;
    const next = from >= 0 ? view.next(from, direction) : view.at(view.width / 2, view.height / 2, Infinity);
    if (next < 0) return;
    this.hover(next);
    view.reveal(next);
  }

  listenToPointer() {
    const { canvas } = this.tools;
    let start = null;
    let dragging = false;
    canvas.addEventListener("pointerdown", (event) => {
      start = event;
      dragging = false;
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!start) return this.hover(this.view.at(event.offsetX, event.offsetY));
      if (!dragging && Math.hypot(event.x - start.x, event.y - start.y) < DRAGGED) return;
      if (!dragging) canvas.setPointerCapture(event.pointerId);
      dragging = true;
      this.view.pan(event.movementX, event.movementY);
    });
    canvas.addEventListener("pointerup", (event) => {
      if (start && !dragging) {
        this.pin(this.view.at(event.offsetX, event.offsetY));
        if (event.pointerType === "touch") this.tools.pair.scrollIntoView({ block: "nearest" });
      }
      start = null;
    });
    canvas.addEventListener("pointercancel", () => (start = null));
    canvas.addEventListener("pointerleave", () => {
      if (!dragging) start = null;
      this.hover(-1);
    });
    // The wheel scrolls the page past the map, until the map is what one works with.
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey && document.activeElement !== canvas) return;
      event.preventDefault();
      this.view.zoomBy(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
    }, { passive: false });
  }

  listenToTable() {
    for (const body of document.querySelectorAll("#cluster-table tbody")) {
      const cluster = Number(body.dataset.cluster);
      body.querySelector("button").addEventListener("click", () => this.choose(cluster));
    }
  }

  // Filters to a cluster; the same once more takes the filter off.
  choose(cluster) {
    this.cluster = this.cluster === cluster ? null : cluster;
    if (this.view.pinned >= 0 && this.points.cluster[this.view.pinned] !== this.cluster) {
      this.view.pinned = -1;
      this.read(-1);
    }
    this.refilter();
  }

  hover(point) {
    if (point === this.view.hovered) return;
    this.view.hovered = point;
    this.read(point >= 0 ? point : this.view.pinned);
    this.view.redraw();
  }

  // Pins a pair and filters to its cluster; nothing under the pointer lets go of both.
  pin(point) {
    this.view.pinned = point;
    this.cluster = point >= 0 ? this.points.cluster[point] : null;
    this.read(point);
    this.refilter();
  }

  clear() {
    this.tools.search.value = "";
    this.tools.kept.checked = false;
    this.view.hovered = -1;
    this.pin(-1);
  }

  recolour() {
    const mode = this.tools.colour.value;
    const colours = colouring(this.points, mode);
    showLegend(this.tools.legend, this.points, mode, colours, (cluster) => this.choose(cluster));
    this.view.colour(colours);
  }

  refilter() {
    const { points, cluster, tools } = this;
    points.filter({ cluster, words: tools.search.value, kept: tools.kept.checked });
    const all = points.count.toLocaleString("en");
    const of = cluster === null ? "" : ` in cluster ${cluster}`;
    tools.counted.textContent = points.passing < points.count
      ? `${points.passing.toLocaleString("en")} of ${all} pairs match${of}.`
      : `${all} pairs.`;
    for (const body of document.querySelectorAll("#cluster-table tbody")) {
      const chosen = String(Number(body.dataset.cluster) === cluster);
      body.querySelector("button").setAttribute("aria-pressed", chosen);
    }
    this.view.sort();
  }

  // Shows a pair's words beside the map. Every string goes in as text.
  read(point) {
    const { pair } = this.tools;
    const { points } = this;
    pair.classList.toggle("pinned", point >= 0 && point === this.view.pinned);
    if (point < 0) {
      pair.replaceChildren(element("p", "soft", "Point at a pair, or move to one with the arrow keys, to read it."));
      return;
    }
    const head = element("p", "", dot(`c${points.cluster[point] % CLUSTER_COLOURS}`),
      element("b", "", `Cluster ${points.cluster[point]}`),
      `, ${points.kept[point] ? "kept" : "not kept"}${point === this.view.pinned ? ", pinned" : ""}`);
    const figures = ["margin", "usefulness", "informativeness"]
      .map((name) => `${name} ${figure(points[name][point])}`)
      .join(", ");
    const texts = element("dl", "");
    for (const name of ["prompt", "chosen", "rejected"]) {
      const words = element("dd", "words", points.text(name, point));
      words.dir = "auto";
      texts.append(element("dt", "", name), words);
    }
    const depth = `prompt keeps ${points.depth[point]} pair${points.depth[point] === 1 ? "" : "s"}`;
    const known = element("p", "soft", `${figures}; ${depth}`);
    pair.replaceChildren(head, known, texts, element("p", "soft mono", points.ids[point]));
  }
}
