// The pairs of the map: columns of numbers, texts by number, and which pairs pass the filters.
class Points {
  constructor(data) {
    const columns = data.columns;
    this.count = columns.id.length;
    this.limit = data.limit;
    this.texts = data.texts;
    this.ids = columns.id;
    for (const name of ["x", "y", "usefulness", "informativeness", "margin"]) {
      this[name] = Float32Array.from(columns[name]);
    }
    for (const name of ["cluster", "depth", "kept", "prompt", "chosen", "rejected"]) {
      this[name] = Int32Array.from(columns[name]);
    }
    this.passes = new Uint8Array(this.count).fill(1);
    this.passing = this.count;
    this.lowered = null;
    this.sizes = new Map();
    for (const cluster of this.cluster) this.sizes.set(cluster, (this.sizes.get(cluster) || 0) + 1);
  }

  text(name, point) {
    return this.texts[this[name][point]];
  }

  // cluster: a number or null; words: what every text is searched for; kept: kept pairs alone.
  filter({ cluster, words, kept }) {
    const found = this.found(words.trim().toLowerCase());
    this.passing = 0;
    for (let point = 0; point < this.count; point++) {
      const passes =
        (cluster === null || this.cluster[point] === cluster) &&
        (!kept || this.kept[point]) &&
        (!found ||
          found[this.prompt[point]] || found[this.chosen[point]] || found[this.rejected[point]]);
      this.passes[point] = passes ? 1 : 0;
      this.passing += this.passes[point];
    }
  }

  // Which texts hold the words; null where nothing is searched for.
  found(words) {
    if (!words) return null;
    this.lowered ??= this.texts.map((text) => text.toLowerCase());
    return this.lowered.map((text) => text.includes(words));
  }

  // The value below which a share of the finite values of a measure lies.
  quantile(name, share) {
    const sorted = Float32Array.from(this[name]).sort();
    return sorted[Math.round(share * (this.count - 1))];
  }
}
