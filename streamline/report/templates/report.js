"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Figures: drawn by Vega from the page's data, wide or for a phone, over the drawing that is there.
const source = document.getElementById("data");
const phone = matchMedia("(max-width: 640px)");
const { config, figures } = source ? JSON.parse(source.textContent) : { figures: {} };
async function draw(element) {
  const figure = figures[element.dataset.figure];
  const chosen = element.querySelector(".switch input:checked");
  const view = figure.views[chosen ? chosen.value : 0];
  const spec = { ...view[phone.matches ? "narrow" : "wide"], config };
  spec.datasets = structuredClone(figure.data);
  await vegaEmbed(element.querySelector(".drawing"), spec, {
    renderer: "svg",
    downloadFileName: element.dataset.figure,
    actions: { export: true, source: false, compiled: false, editor: false },
  });
  element.dataset.drawn = chosen ? chosen.value : 0;
}
async function drawAll() {
  for (const element of all("[data-figure]")) await draw(element);
  document.body.dataset.ready = "";
}
for (const element of all("[data-figure]"))
  for (const input of all(".switch input", element))
    input.addEventListener("change", () => draw(element));
phone.addEventListener("change", drawAll);
addEventListener("beforeprint", () => all("main details").forEach((part) => (part.open = true)));

// The table: sorted by its headings, filtered by method and target, columns shown or hidden.
const table = document.getElementById("results");
const heads = all("thead th", table);
const body = table.tBodies[0];
const rows = all("tr", body);
const place = (name) => heads.findIndex((head) => head.textContent.startsWith(name));
const targetAt = place("target");
const named = heads.map((head, at) => at).filter((at) => heads[at].matches(".words"));
const folded = heads.map((head) => head.hidden);
const text = (row, at) => row.cells[at].textContent.trim();
const number = (value) => parseFloat(value.replaceAll(",", "").replace("−", "-"));
function sort(at) {
  const words = heads[at].matches(".words");
  const first = words ? "ascending" : "descending";
  const other = words ? "descending" : "ascending";
  const order = heads[at].ariaSort === first ? other : first;
  heads.forEach((head, index) => (head.ariaSort = index === at ? order : null));
  const sign = order === "ascending" ? 1 : -1;
  const compare = (one, next) => {
    const [a, b] = [text(one, at), text(next, at)];
    if (words) return sign * a.localeCompare(b);
    const [x, y] = [number(a), number(b)];
    return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : sign * (x - y);
  };
  body.append(...[...rows].sort(compare));
  table.classList.add("sorted");
}
function filter() {
  const part = document.getElementById("filter").value.toLowerCase();
  const targets = new Set(all("#targets input:checked").map((input) => input.value));
  for (const row of rows) {
    const fits = named.some((at) => text(row, at).toLowerCase().includes(part));
    row.hidden = !fits || !targets.has(text(row, targetAt));
  }
  const shown = rows.filter((row) => !row.hidden).length;
  document.getElementById("count").value = shown < rows.length ? `${shown} of ${rows.length} rows` : "";
}
function show(at, on) {
  for (const row of table.rows) row.cells[at].hidden = !on;
  table.classList.toggle("unfolded", heads.some((head, index) => folded[index] && !head.hidden));
}
function checkbox(parent, label, checked, change) {
  const input = Object.assign(document.createElement("input"), { type: "checkbox", checked, value: label });
  const around = document.createElement("label");
  around.append(input, ` ${label}`);
  document.getElementById(parent).append(around);
  input.addEventListener("change", () => change(input.checked));
  return input;
}
heads.forEach((head, at) => head.firstChild.addEventListener("click", () => sort(at)));
document.getElementById("filter").addEventListener("input", filter);
for (const target of new Set(rows.map((row) => text(row, targetAt)))) checkbox("targets", target, true, filter);
const boxes = heads.map((head, at) => {
  const unit = all("span", head).map((line) => line.textContent).join(" ");
  const label = `${head.textContent.slice(0, head.textContent.length - unit.length)} ${unit}`;
  return at && checkbox("columns", label, !head.hidden, (on) => show(at, on));
});
document.getElementById("tasks")?.addEventListener("change", ({ target }) => {
  folded.forEach((is, at) => is && show(at, (boxes[at].checked = target.checked)));
});
document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());
drawAll();
