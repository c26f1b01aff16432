// Starts what the page has; without any of it the page still reads.
const data = JSON.parse(document.getElementById("points").textContent);
const map = data.columns.id.length ? new PairMap(new Points(data)) : null;
startTables();
startTheme(() => map?.view.redraw());
startPrinting(() => map?.view.redraw());
