// Draws the points and finds the one under the pointer or next in a direction.
const REACH = 14; // pixels from the pointer at which a point still counts as meant
const CLOSEST = 200; // greatest zoom
const ROUND = 20000; // points up to which they are drawn as discs

class Canvas {
  constructor(canvas, points) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.points = points;
    this.zoom = 1;
    this.centre = [0.5, 0.5]; // of the view, in the map's own measure, 0 to 1
    this.hovered = this.pinned = -1;
    this.waiting = false;
    this.place();
    new ResizeObserver(() => this.fit()).observe(canvas);
  }

  // Where each point lies between the outermost ones, 0 to 1; y grows upwards on the page.
  place() {
    this.across = placed(this.points.x, false);
    this.down = placed(this.points.y, true);
  }

  fit() {
    const box = this.canvas.getBoundingClientRect();
    const ratio = devicePixelRatio || 1;
    this.width = box.width;
    this.height = box.height;
    this.canvas.width = Math.max(1, Math.round(box.width * ratio));
    this.canvas.height = Math.max(1, Math.round(box.height * ratio));
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.redraw();
  }

  colour({ colours, of }) {
    this.colours = colours;
    this.of = of;
    this.sort();
  }

  // The order of drawing: those that fail the filter, then those not kept, then the kept.
  sort() {
    const { count, passes, kept } = this.points;
    const layers = new Map();
    for (let point = 0; point < count; point++) {
      const layer = passes[point] ? 1 + kept[point] : 0;
      const key = layer * 1000 + (layer ? this.of[point] : 0);
      if (!layers.has(key)) layers.set(key, []);
      layers.get(key).push(point);
    }
    this.layers = [...layers].sort((a, b) => a[0] - b[0]);
    this.redraw();
  }

  redraw() {
    if (this.waiting || !this.layers || !this.width) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  left(point) {
    return (this.across[point] - this.centre[0]) * this.scaleX() + this.width / 2;
  }

  top(point) {
    return (this.down[point] - this.centre[1]) * this.scaleY() + this.height / 2;
  }

  scaleX() {
    return (this.width - 24) * this.zoom;
  }

  scaleY() {
    return (this.height - 24) * this.zoom;
  }

  draw() {
    const started = performance.now();
    const { context, points } = this;
    const style = getComputedStyle(this.canvas);
    context.clearRect(0, 0, this.width, this.height);
    const size = Math.min(6, (points.count > 30000 ? 1.5 : points.count > 3000 ? 2 : 2.8) * this.zoom ** 0.25);
    for (const [key, members] of this.layers) {
      const layer = Math.floor(key / 1000);
      context.fillStyle = layer ? this.colours[key % 1000] : style.color;
      context.globalAlpha = [0.08, 0.4, 0.95][layer];
      this.fill(members, layer === 2 ? size : size * 0.8);
    }
    context.globalAlpha = 1;
    context.strokeStyle = style.color;
    for (const [point, radius] of [[this.hovered, 7], [this.pinned, 9]]) {
      if (point < 0) continue;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(this.left(point), this.top(point), radius, 0, 2 * Math.PI);
      context.stroke();
    }
    this.canvas.dataset.drawn = (performance.now() - started).toFixed(1); // milliseconds
  }

  fill(members, size) {
    const { context, width, height } = this;
    const round = this.points.count <= ROUND;
    if (round) context.beginPath();
    for (const point of members) {
      const [x, y] = [this.left(point), this.top(point)];
      if (x < -size || y < -size || x > width + size || y > height + size) continue;
      if (round) {
        context.moveTo(x + size, y);
        context.arc(x, y, size, 0, 2 * Math.PI);
      } else context.fillRect(x - size, y - size, 2 * size, 2 * size);
    }
    if (round) context.fill();
  }

  // The passing point nearest to a place on the canvas, -1 if none is in reach.
  at(x, y, reach = REACH) {
    let [best, least] = [-1, reach * reach];
    for (let point = 0; point < this.points.count; point++) {
      if (!this.points.passes[point]) continue;
      const [dx, dy] = [this.left(point) - x, this.top(point) - y];
      const far = dx * dx + dy * dy;
      if (far < least) [best, least] = [point, far];
    }
    return best;
  }

  // The nearest passing point in a direction; a step to the side counts as two ahead.
  next(from, [right, below]) {
    const [x, y] = [this.left(from), this.top(from)];
    let [best, least] = [-1, Infinity];
    for (let point = 0; point < this.points.count; point++) {
      if (point === from || !this.points.passes[point]) continue;
      const [dx, dy] = [this.left(point) - x, this.top(point) - y];
      const ahead = dx * right + dy * below;
      const far = ahead + 2 * Math.abs(dx * below - dy * right);
      if (ahead > 0 && far < least) [best, least] = [point, far];
    }
    return best;
  }

  // Zooms by a factor about a place on the canvas, which stays where it is.
  zoomBy(factor, x = this.width / 2, y = this.height / 2) {
    const zoom = Math.min(Math.max(this.zoom * factor, 1), CLOSEST);
    const [dx, dy] = [x - this.width / 2, y - this.height / 2];
    const moved = 1 / this.zoom - 1 / zoom;
    this.centre[0] += (dx / (this.width - 24)) * moved;
    this.centre[1] += (dy / (this.height - 24)) * moved;
    this.zoom = zoom;
    this.hold();
  }

  pan(dx, dy) {
    this.centre[0] -= dx / this.scaleX();
    this.centre[1] -= dy / this.scaleY();
    this.hold();
  }

  whole() {
    this.zoom = 1;
    this.hold();
  }

  // Keeps the view over the map.
  hold() {
    const half = 0.5 / this.zoom;
    this.centre = this.centre.map((at) => Math.min(Math.max(at, half), 1 - half));
    this.redraw();
  }

  // Moves the view so that a point can be seen.
  reveal(point) {
    const [x, y] = [this.left(point), this.top(point)];
    if (x < 0 || y < 0 || x > this.width || y > this.height) {
      this.centre = [this.across[point], this.down[point]];
      this.hold();
    }
  }
}

function placed(values, turned) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
  const span = high - low;
  return values.map((value) => {
    const share = span > 0 ? (value - low) / span : 0.5;
    return turned ? 1 - share : share;
  });
}
