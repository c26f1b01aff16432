// Tables that sort: each heading with data-sort gets a button; each tbody is one row to move.
const COLLATOR = new Intl.Collator(undefined, { numeric: true });

function startTables() {
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const heading of table.querySelectorAll("th[data-sort]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => sortBy(table, heading));
    }
  }
}

function sortBy(table, heading) {
  const column = heading.cellIndex;
  const text = heading.dataset.sort === "text";
  // Numbers are looked for from the top down, names from A on.
  const first = text ? "ascending" : "descending";
  const other = text ? "descending" : "ascending";
  const order = heading.getAttribute("aria-sort") === first ? other : first;
  for (const one of table.querySelectorAll("th")) one.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...table.tBodies].map((body) => ({ body, value: valueOf(body, column, text) }));
  rows.sort((a, b) => compared(a.value, b.value, sign, text));
  for (const row of rows) table.append(row.body);
}

function valueOf(body, column, text) {
  const said = body.rows[0].cells[column].textContent.trim();
  return text ? said : Number.parseFloat(said.replace(/[,<]/g, "").replace("\u2212", "-"));
}

// Cells without a number come last, whichever way the rest goes.
function compared(a, b, sign, text) {
  if (text) return sign * COLLATOR.compare(a, b);
  if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
  return sign * (a - b);
}
